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


def make(start):
  """What both of them wrote."""
  if start == 2 and jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGTERM)
  return {"texts": sharding.gather_texts(f"{start} " + "é" * here)}


sharding.join_processes(os.environ)
preemption.watch()
here = jax.process_index()
mine = np.arange(8, dtype=np.float32).reshape(4, 2) + 100 * here
shared = sharding.of_first_holder(mine, sharding.make_mesh(1, 1, -1), 4)
np.testing.assert_array_equal(shared, mine - 100 * here)
own = sharding.of_first_holder(mine, sharding.make_mesh(-1), 8)
np.testing.assert_array_equal(own, mine)
try:
  journal.keep(Path(sys.argv[1]), {}, range(4), make)
except Preempted as word:
  print(word)
