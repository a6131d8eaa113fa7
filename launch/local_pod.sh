#!/usr/bin/env bash
# Runs the trainer as N processes of this machine, as a pod would.
#   launch/local_pod.sh N --config=configs/NAME.py --workdir=DIR [flags]
# PYTHON names the interpreter, DEVICES how many CPU devices a process has.
# The first process to fail is named and ends the others; SIGTERM and Ctrl-C
# reach all of them.
set -euo pipefail

if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local_pod.sh N --config=FILE --workdir=DIR [flags]" >&2
  exit 2
fi
processes=$1
shift
python=${PYTHON:-python}
port=$("$python" -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

export JAXRL_COORDINATOR=127.0.0.1:$port JAXRL_PROCESSES=$processes
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"

pids=()
stop() { kill "${pids[@]}" 2>/dev/null || true; }
# To all, which save and end by themselves.
trap stop INT TERM
for ((i = 0; i < processes; i++)); do
  JAXRL_PROCESS=$i "$python" -m jaxrl_mm.main "$@" &
  pids+=($!)
done

status=0 left=$processes
while ((left)); do
  ended='' code=0
  wait -n -p ended "${pids[@]}" || code=$?
  [[ $ended ]] || continue # a signal came, not the end of a process
  ((left--)) || true
  for i in "${!pids[@]}"; do
    [[ ${pids[i]} == "$ended" ]] && unset "pids[i]" && break
  done
  if ((code && !status)); then
    status=$code
    echo "process $i of $processes ended with code $code" >&2
    stop
    # Those that wait for the dead one in a collective hear no signal.
    (sleep "${GRACE_SECONDS:-30}" && kill -9 "${pids[@]}") >/dev/null 2>&1 &
    killer=$!
  fi
done
[[ ! ${killer:-} ]] || kill "$killer" 2>/dev/null || true
exit "$status"
