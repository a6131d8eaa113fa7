"""A process of two that share rows and a journal; see `processes_pod.py`.

The second one gets SIGTERM while they make the third batch.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from jaxrl_mm import preemption, sharding
from jaxrl_mm.preemption import Preempted
from jaxrl_mm.train import journal


def check_rows(mesh):
  """Rows of all types come from and go to devices of the other process."""
  rng = np.random.default_rng(0)
  whole = {
    "x": rng.standard_normal((8, 3)).astype(np.float32),
    "y": rng.integers(0, 256, (8, 2, 2)).astype(np.uint8),
    "z": rng.random(8) < 0.5,
  }
  mine = sharding.local_rows(mesh, 8)
  placed = sharding.to_device({n: x[mine] for n, x in whole.items()}, mesh)
  read, put = np.arange(8)[::-1].copy(), np.array([5, 8, 7, 0, 9, 2, 1, 3])
  with jax.set_mesh(mesh):
    got = jax.jit(sharding.gather_rows)(placed, read)
    changed = jax.jit(sharding.scatter_rows)(placed, put, got)
  for name, x in whole.items():
    expected = x.copy()
    expected[put[put < 8]] = x[read][put < 8]
    np.testing.assert_array_equal(sharding.to_every_host(got[name]), x[read])
    there = sharding.to_every_host(changed[name])
    np.testing.assert_array_equal(there, expected)


def make(start):
  """What both of them wrote."""
  if start == 2 and jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGTERM)
  assert sharding.gather_texts("") == ["", ""]
  return {"texts": sharding.gather_texts(f"{start} " + "é" * here)}


sharding.join_processes(os.environ)
preemption.watch()
here = jax.process_index()
mine = np.arange(8, dtype=np.float32).reshape(4, 2) + 100 * here
across, apart = sharding.make_mesh(1, 1, -1), sharding.make_mesh(-1)
shared = sharding.of_first_holder(mine, across, 4)
np.testing.assert_array_equal(shared, mine - 100 * here)
assert list(sharding.first_held(across, 4)) == [here == 0] * 4
np.testing.assert_array_equal(sharding.of_first_holder(mine, apart, 8), mine)
assert list(sharding.first_held(apart, 8)) == [True] * 4
check_rows(apart)
try:
  journal.keep(Path(sys.argv[1]), {}, range(4), make)
except Preempted as word:
  print(word)
