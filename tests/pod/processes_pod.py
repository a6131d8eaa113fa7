"""Several processes give what one gives, in all stages: `make pod`."""

import json
import os
import signal
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


@pytest.fixture(scope="module")
def short(tmp_path_factory):
  """One of fewer stages and steps, on one device."""
  folder = tmp_path_factory.mktemp("runs") / "short"
  launching.finish(launching.start(folder, "short", 1, 1, *mesh(1, 1, 1)))
  replayed = [line["effective"] for line in launching.lines(folder, "policy")]
  assert max(replayed) > 0
  return folder


def mesh(data, fsdp, tensor):
  """The flags for it."""
  return f"mesh.data={data}", f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}"


def test_two_processes_with_four_devices_each(whole, tmp_path):
  launching.finish(launching.start(tmp_path, "whole", 2, 4))
  launching.check_equal(tmp_path, whole, STAGES)
  replayed = [line["effective"] for line in launching.lines(whole, "policy")]
  assert max(replayed) > 0  # the buffer had something to give


def test_processes_that_hold_the_same_rows(short, tmp_path):
  """The tensor axis goes across both of them."""
  flags = mesh(1, 1, 2)
  launching.finish(launching.start(tmp_path, "short", 2, 1, *flags))
  check_short(tmp_path, short)


def test_taken_away_and_continued_on_other_processes(short, tmp_path):
  """SIGTERM to the launcher; the rest runs on one process and another mesh."""
  process = launching.start(tmp_path, "short", 2, 2, *mesh(2, 1, 2))
  steps = lambda: len(launching.lines(tmp_path, "sft"))
  wait_until(lambda: steps() >= 3, process)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=900)
  assert "stopped: sft was asked to end and has saved step" in output
  flags = mesh(1, 4, 1)
  launching.finish(launching.start(tmp_path, "short", 1, 4, *flags))
  check_short(tmp_path, short)


def check_short(folder, short):
  """As it, but for means over micro-batches, whose rows are others."""
  but = "entropy", "approx_kl", "clip_fraction"
  launching.check_equal(folder, short, ("sft", "policy"), but)


def test_two_processes_agree_on_rewards_rows_texts_and_the_end(tmp_path):
  """The signal reaches one of them alone."""
  path = tmp_path / "a.jsonl"
  for process in launching.start_two("agreeing.py", path):
    output = launching.finish(process, limit=900)
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


@pytest.mark.parametrize("waits", ["for it", "elsewhere"])
@pytest.mark.parametrize("how", ["dies", "fails"])
@pytest.mark.parametrize("ends", [0, 1])
def test_without_a_launcher_they_notice_it_themselves(ends, how, waits):
  began = time.monotonic()
  started = launching.start_two("dying.py", str(ends), how, waits)
  outputs = [process.communicate(timeout=600)[0] for process in started]
  took = time.monotonic() - began
  print(f"{took:.0f} seconds\n{outputs[1 - ends][-1500:]}")
  assert took < 60 and all(process.returncode for process in started)
  if how == "fails":
    assert "error: a bad record" in outputs[ends]


def wait_until(done, process, limit=3000):
  """Looks again and again; the run must not end before."""
  until = time.monotonic() + limit
  while not done():
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.2)
