"""launch/local_pod.sh, with a trainer that only says how it was called."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The port is asked with -c. DOES is what each process does then; one that fails
# lets the two others begin.
PYTHON = """#!/usr/bin/env bash
[[ $1 == -c ]] && echo 4711 && exit
echo "$JAXRL_PROCESS of $JAXRL_PROCESSES at $JAXRL_COORDINATOR: $XLA_FLAGS: $*"
cd "$(dirname "$0")"
does=($DOES)
case ${does[$JAXRL_PROCESS]} in
  ends) exit 0 ;;
  fails) until [[ -e waits.0 && -e waits.2 ]]; do sleep 0.02; done; exit 3 ;;
  hears) trap 'echo "$JAXRL_PROCESS heard"; exit 1' TERM ;;
  deaf) trap '' TERM ;;
esac
touch "waits.$JAXRL_PROCESS"
while true; do sleep 0.02; done
"""


@pytest.fixture
def start(tmp_path):
  """A function `(processes, what each does) -> the launcher`."""
  python = tmp_path / "python"
  python.write_text(PYTHON)
  python.chmod(0o755)
  environ = {"PYTHON": str(python), "DEVICES": "4", "GRACE_SECONDS": "0.5"}

  def launch(processes, *does):
    return subprocess.Popen(
      [ROOT / "launch" / "local_pod.sh", processes, "--config=a b.py"],
      env=os.environ | environ | {"XLA_FLAGS": "", "DOES": " ".join(does)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  return launch


def test_every_process_gets_its_number_and_the_same_command(start):
  process = start("2", "ends", "ends")
  output, _ = process.communicate(timeout=30)
  command = "--xla_force_host_platform_device_count=4: -m jaxrl_mm.main"
  assert sorted(output.splitlines()) == [
    f"{number} of 2 at 127.0.0.1:4711:  {command} --config=a b.py"
    for number in (0, 1)
  ]
  assert process.returncode == 0


def test_the_first_to_fail_is_named_and_ends_the_others(start):
  process = start("3", "hears", "fails", "deaf")
  output, _ = process.communicate(timeout=30)
  assert "process 1 of 3 ended with code 3" in output
  assert "0 heard" in output and process.returncode == 3


def test_a_signal_reaches_all(start, tmp_path):
  process = start("2", "hears", "hears")
  while len(list(tmp_path.glob("waits.*"))) < 2:
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=30)
  assert "0 heard" in output and "1 heard" in output
  assert process.returncode == 1


@pytest.mark.parametrize("processes", ["", "0", "two"])
def test_the_number_of_processes_is_needed(start, processes):
  process = start(processes)
  output, _ = process.communicate(timeout=30)
  assert output.startswith("usage: launch/local_pod.sh N --config=FILE")
  assert process.returncode == 2
