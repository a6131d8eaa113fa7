#!/usr/bin/env bash
# Trains on a Cloud TPU slice with one command:
#   launch/tpu_pod.sh CONFIG --name NAME --zone ZONE --type v5p-256 \
#     --workdir DIR [--spot] [--runtime VERSION] [--bucket NAME] \
#     [--env NAME]... [--dry_run] [--delete] [-- flags of jaxrl_mm.main]
# Creates the queued resource NAME or takes the one that is there, copies the
# last commit, installs it on every worker, starts the same command on all and
# shows worker 0. Spot capacity that is taken away is asked for again, and the
# run continues from its newest checkpoint. --bucket mounts a bucket with
# hierarchical namespace on every worker as bucket/ of the checkout, in which the
# run starts, and links its folders data/ and checkpoints/ beside it; put
# --workdir below bucket/. --env hands on a variable of this shell, such as a
# key, by a file that is read once. --delete removes NAME.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "error: $*" >&2
  exit 1
}

config='' name='' zone='' type='' workdir='' bucket='' spot='' dry='' delete=''
runtime='' flags=() variables=()
while (($#)); do
  case $1 in
    --name | --zone | --type | --workdir | --bucket | --runtime)
      [[ -n ${2:-} ]] || fail "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --env)
      [[ ${2:-} =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail "--env needs a name"
      [[ -n ${!2:-} ]] || fail "--env $2: that variable is not set here"
      variables+=("$2")
      shift
      ;;
    --spot) spot=--spot ;;
    --dry_run) dry=1 ;;
    --delete) delete=1 ;;
    --)
      shift
      flags=("$@")
      break
      ;;
    -*) fail "unknown flag $1; see the head of $0" ;;
    *) config=$1 ;;
  esac
  shift
done
for needed in name zone; do [[ -n ${!needed} ]] || fail "--$needed is missing"; done

run() {
  if [[ $dry ]]; then
    printf '+'
    printf ' %q' "$@"
    printf '\n'
  else
    "$@"
  fi
}
resource() { run gcloud compute tpus queued-resources "$@" --zone "$zone"; }
on_all() {
  run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker "$1" \
    --command "$2"
}
state() {
  [[ $dry ]] && echo ACTIVE && return
  local told
  if told=$(gcloud compute tpus queued-resources describe "$name" \
    --zone "$zone" --format 'value(state.state)' 2>&1); then
    tail -n 1 <<<"$told" # behind what gcloud warns of
  elif [[ $told == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "$told" >&2
    echo UNKNOWN
  fi
}
# look: the state into `now`. One question that fails says nothing of a slice.
look() {
  for _ in 1 2 3 4 5; do
    now=$(state)
    [[ $now == UNKNOWN ]] || return 0
    sleep "${POLL_SECONDS:-30}"
  done
  fail "gcloud does not tell the state of $name"
}

if [[ $delete ]]; then
  resource delete "$name" --force --quiet || fail "could not delete $name"
  exit
fi
for needed in config type workdir; do
  [[ -n ${!needed} ]] || fail "$needed is missing; see the head of $0"
done
# What is committed later does not come into a run that goes on.
commit=$(git rev-parse HEAD)
[[ $(git cat-file -t "$commit:${config%%:*}" 2>/dev/null) == blob ]] ||
  fail "there is no config $config in the last commit"
case $type in
  v5p-*) default=v2-alpha-tpuv5 ;;
  v5litepod-*) default=v2-alpha-tpuv5-lite ;;
  v6e-*) default=v2-alpha-tpuv6e ;;
  *) default=tpu-ubuntu2204-base ;;
esac

# A save is a folder that is renamed when it is whole. In a flat bucket that
# copies file by file, and one cut short would look whole.
check_bucket() {
  local told
  told=$(run gcloud storage buckets describe "gs://$bucket" \
    --raw --format 'default(hierarchicalNamespace)') ||
    fail "there is no bucket $bucket"
  [[ $dry ]] && echo "$told" && return
  [[ $told == *'enabled: true'* ]] || fail "$bucket has no hierarchical" \
    "namespace; make a bucket by 'gcloud storage buckets create" \
    "gs://NAME --uniform-bucket-level-access --enable-hierarchical-namespace'"
}
[[ ! $bucket ]] || check_bucket

create() {
  resource create "$name" --node-id "$name" --accelerator-type "$type" \
    --runtime-version "${runtime:-$default}" ${spot:+"$spot"}
}

acquire() {
  look
  case $now in
    SUSPENDED | FAILED)
      resource delete "$name" --force --quiet || fail "could not delete $name"
      ;;&
    NONE | SUSPENDED | FAILED)
      create || fail "could not ask for $name ($type in $zone)"
      ;;
  esac
  [[ ! $dry ]] || create
  while look && [[ $now != ACTIVE ]]; do
    case $now in SUSPENDED | FAILED | NONE) return 1 ;; esac
    echo "$(date +%T) $name: $now"
    sleep "${POLL_SECONDS:-30}"
  done
}

# attempt MESSAGE COMMAND...: a step whose failure is told and handed on.
attempt() {
  local message=$1
  shift
  "$@" || {
    echo "error: $message" >&2
    return 1
  }
}

# The images have an older Python. No worker may remember what another one has
# replaced in the bucket since.
setup="set -e
mkdir -p jaxrl_mm && tar -xzf jaxrl_mm.tgz -C jaxrl_mm && cd jaxrl_mm
export PATH=\$PATH:\$HOME/.local/bin
command -v uv >/dev/null || python3 -m pip install --quiet --user uv
uv venv --quiet --allow-existing --python 3.11 .venv
uv pip install --quiet -c launch/constraints.txt -e '.[tpu]'"
[[ ! $bucket ]] || setup+="
mkdir -p ~/bucket
mountpoint -q ~/bucket || gcsfuse --implicit-dirs --metadata-cache-ttl-secs 0 \
  $(printf %q "$bucket") ~/bucket
ln -sfn ~/bucket bucket
ln -sfn bucket/data data
ln -sfn bucket/checkpoints checkpoints"

install() {
  local folder
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' RETURN
  attempt "could not pack this checkout" \
    run git archive --format=tgz --output "$folder/jaxrl_mm.tgz" "$commit" &&
    attempt "could not copy the code to $name" \
      run gcloud compute tpus tpu-vm scp "$folder/jaxrl_mm.tgz" \
      "$name:jaxrl_mm.tgz" --zone "$zone" --worker all &&
    attempt "could not install on $name" on_all all "$setup"
}

# Values stand on no command line: others could read them there.
hand_on() {
  ((${#variables[@]})) || return 0
  local folder variable
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' RETURN
  (umask 077 && for variable in "${variables[@]}"; do
    printf 'export %s=%q\n' "$variable" "${!variable}"
  done >"$folder/variables")
  attempt "could not hand on variables to $name" \
    run gcloud compute tpus tpu-vm scp "$folder/variables" \
    "$name:.jaxrl_variables" --zone "$zone" --worker all
}

# Only the first process prints, so all workers share this terminal.
start() {
  local take=''
  ((${#variables[@]})) &&
    take='. ~/.jaxrl_variables && rm ~/.jaxrl_variables && '
  on_all all "${take}cd jaxrl_mm && JAXRL_PROCESSES=pod .venv/bin/python -m \
jaxrl_mm.main$(printf ' %q' "--config=$config" "--workdir=$workdir" "${flags[@]}")"
}

# The state follows a while after the machines are gone.
taken_away() {
  look
  [[ $spot ]] || return 1
  for _ in 1 2 3; do
    [[ $now == ACTIVE ]] || return 0
    sleep "${POLL_SECONDS:-30}"
    look
  done
  return 1
}

while true; do
  if acquire && install && hand_on && start; then
    exit 0
  fi
  taken_away ||
    fail "the run failed on $name ($now); --delete removes what is there"
  echo "$(date +%T) $name was taken away; asking for it again"
  sleep "${POLL_SECONDS:-30}"
done
