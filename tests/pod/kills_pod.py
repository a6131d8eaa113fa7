"""Killed at twenty moments, also inside a save, a run ends with the same bits:
`make pod`."""

import os
import random
import signal
import time

import launching
import numpy as np
import pytest

KILLS = 20
pytestmark = pytest.mark.filterwarnings("ignore")


def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path):
  """Saves follow each other, so that many a kill falls into one."""
  mesh = "mesh.data=1", "mesh.fsdp=1", "mesh.tensor=1"
  every = "loop.save_every=1", "sft.steps=20", "policy.steps=20", *mesh
  start = lambda name: launching.start(tmp_path / name, "short", 1, 1, *every)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "xla")
  launching.finish(start("whole"))
  rng, kills, inside = random.Random(0), 0, 0
  while kills < KILLS:
    process = start("killed")
    seen = count(tmp_path / "killed")
    while process.poll() is None and count(tmp_path / "killed") == seen:
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.4))
    if process.poll() is not None:
      break
    inside += bool(list((tmp_path / "killed").rglob("*orbax-checkpoint-tmp*")))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kills += 1
  launching.finish(start("killed"))
  print(f"{kills} kills, {inside} of them inside a save")
  assert kills >= KILLS / 2 and inside
  one, other = (launching.final(tmp_path / n) for n in ("whole", "killed"))
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)
  for stage in ("sft", "policy"):
    lines = [launching.lines(tmp_path / n, stage) for n in ("whole", "killed")]
    assert lines[0] == lines[1]


def count(folder):
  """Steps that were written so far."""
  return sum(len(launching.lines(folder, s)) for s in ("sft", "policy"))
