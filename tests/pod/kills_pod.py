"""Killed at twenty moments, also inside a save, a run ends with the same bits:
`make pod`."""

import multiprocessing
import os
import random
import statistics
import time

import launching
import learning
import numpy as np
import pytest

from jaxrl_mm import metrics

KILLS = 20
pytestmark = pytest.mark.filterwarnings("ignore")
# Imports are half of a start: a server has done them and forks.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["launching", "learning"])


@pytest.fixture(scope="module", autouse=True)
def environ(tmp_path_factory):
  """Of the server: one device, and programs are compiled once."""
  with pytest.MonkeyPatch.context() as patch:
    tests = launching.ROOT / "tests" / "pod"
    patch.setenv("PYTHONPATH", f"{launching.ROOT}:{tests}")
    one_device = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
    patch.setenv("XLA_FLAGS", one_device)
    patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    cache = tmp_path_factory.mktemp("xla")
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    yield


def test_a_stage_with_all_kinds_of_state(tmp_path):
  """Its steps are so short that saving is most of the time."""
  compare(tmp_path, learning.run)


def test_a_whole_run(tmp_path):
  compare(tmp_path, launching.train)


def compare(folder, run):
  """A run that nobody disturbs, and one that is killed and started again."""
  start(run, folder / "whole").join()
  rng, inside, newest = random.Random(0), 0, 0
  pace = seconds_a_step(folder / "whole")
  for _ in range(KILLS):
    process = start(run, folder / "killed")
    wait_for_a_step(folder / "killed", process)
    time.sleep(rng.uniform(0, 2 * pace))
    process.kill()
    process.join()
    assert process.exitcode == -9, "it ended before it was killed"
    inside += any((folder / "killed").rglob("*orbax-checkpoint-tmp*"))
    assert newest <= (newest := saved(folder / "killed"))
  last = start(run, folder / "killed")
  last.join()
  assert last.exitcode == 0
  print(f"{KILLS} kills, {inside} of them inside a save")
  assert inside
  check_same_bits(folder / "whole", folder / "killed")


def start(run, folder):
  process = FORK.Process(target=run, args=(folder,))
  process.start()
  return process


def seconds_a_step(folder):
  """The median, with the save before it."""
  gaps = []
  for path in folder.rglob("metrics.jsonl"):
    gaps += np.diff([x["seconds"] for x in metrics.read_lines(path)]).tolist()
  return statistics.median(gaps)


def wait_for_a_step(folder, process):
  """Returns when a line was written; lines that it takes back are none."""
  began = lines(folder)
  while process.is_alive() and lines(folder) <= began:
    began = min(began, lines(folder))
    time.sleep(0.005)


def lines(folder):
  """Steps that were written so far; a save's folders may go meanwhile."""
  found = [*folder.glob("metrics.jsonl"), *folder.glob("*/metrics.jsonl")]
  return sum(len(metrics.read_lines(path)) for path in found)


def saved(folder):
  """Steps in whole checkpoints, of all trainings."""
  steps = {}
  for path in folder.rglob("checkpoints/*"):
    if path.name.isdigit():
      steps[path.parent] = max(steps.get(path.parent, 0), int(path.name))
  return sum(steps.values())


def check_same_bits(one, other):
  a, b = launching.final(one), launching.final(other)
  assert a and a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  for path in one.rglob("metrics.jsonl"):
    stage = path.parent.relative_to(one)
    assert launching.lines(one, stage) == launching.lines(other, stage)
