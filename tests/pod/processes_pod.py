"""Several processes give what one gives, in all stages: `make pod`."""

import json
import os
import signal
import subprocess
import sys
import time

import launching
import pytest

STAGES = "sft", "reward_model", "preference", "policy"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run of one process with eight devices."""
  folder = tmp_path_factory.mktemp("runs") / "one"
  launching.finish(launching.start(folder, "whole", 1, 8))
  return folder


def test_two_processes_with_four_devices_each(whole, tmp_path):
  launching.finish(launching.start(tmp_path, "whole", 2, 4))
  launching.check_equal(tmp_path, whole, STAGES)
  replayed = [line["effective"] for line in launching.lines(whole, "policy")]
  assert max(replayed) > 0  # the buffer had something to give


def test_processes_that_hold_the_same_rows(whole, tmp_path):
  """Eight processes of one device: the tensor axis goes across them."""
  launching.finish(launching.start(tmp_path, "whole", 8, 1))
  launching.check_equal(tmp_path, whole, STAGES)


def test_taken_away_and_continued_on_other_processes(tmp_path):
  """SIGTERM to the launcher; the rest runs on one process and another mesh."""
  process = launching.start(tmp_path / "cut", "short", 2, 4)
  steps = lambda: len(launching.lines(tmp_path / "cut", "sft"))
  wait_until(lambda: steps() >= 3, process)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=300)
  assert "stopped: sft was asked to end and has saved step" in output
  mesh = "mesh.data=2", "mesh.fsdp=4", "mesh.tensor=1"
  launching.finish(launching.start(tmp_path / "cut", "short", 1, 8, *mesh))
  launching.finish(launching.start(tmp_path / "one", "short", 1, 8))
  launching.check_equal(tmp_path / "cut", tmp_path / "one", ("sft", "policy"))


def test_two_processes_agree_on_rewards_texts_and_the_end(tmp_path):
  """The signal reaches one of them alone."""
  path = tmp_path / "a.jsonl"
  environ = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "PYTHONPATH": str(launching.ROOT),
    "JAXRL_COORDINATOR": f"127.0.0.1:{launching.free_port()}",
    "JAXRL_PROCESSES": "2",
  }
  script = launching.ROOT / "tests" / "pod" / "agreeing.py"
  started = [
    subprocess.Popen(
      [sys.executable, script, path],
      env=environ | {"JAXRL_PROCESS": str(number)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for number in (0, 1)
  ]
  for process in started:
    output = launching.finish(process, limit=300)
    assert "has kept 3 of 4 batches of a.jsonl" in output
  kept = [json.loads(line) for line in path.read_text().splitlines()]
  assert kept == [{}, *({"texts": [f"{n} ", f"{n} é"]} for n in range(3))]


def test_a_host_that_dies_ends_the_others_within_a_minute(tmp_path):
  process = launching.start(tmp_path, "short", 2, 4)
  wait_until(lambda: len(launching.lines(tmp_path, "sft")) >= 2, process)
  os.kill(launching.children(process)[1], signal.SIGKILL)
  began = time.monotonic()
  output, _ = process.communicate(timeout=120)
  assert time.monotonic() - began < 60
  assert process.returncode != 0
  assert "process 1 of 2 ended with code 137" in output


def wait_until(done, process, limit=1500):
  """Looks again and again; the run must not end before."""
  until = time.monotonic() + limit
  while not done():
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.2)
