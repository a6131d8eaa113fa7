"""The warning that this machine will be taken away: SIGTERM."""

import itertools
import signal
import threading

import jax
from jax.experimental import multihost_utils

_ASKED = threading.Event()
_LOOKS = itertools.count()


class Preempted(Exception):
  """The run was asked to end and has saved; its message says where."""


def watch() -> None:
  """From here on SIGTERM asks a run to save and end, where it would kill it.

  In a run of several processes jax itself listens to the signal.
  """
  if jax.process_count() == 1:
    signal.signal(signal.SIGTERM, lambda *_: _ASKED.set())


def is_near() -> bool:
  """Whether to save and end now.

  All processes must ask equally often and get the same answer, though the
  signal may reach one of them alone.
  """
  if jax.process_count() == 1:
    return _ASKED.is_set()
  return multihost_utils.reached_preemption_sync_point(next(_LOOKS))
