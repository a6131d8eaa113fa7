"""The warning that this machine will be taken away: SIGTERM."""

import signal
import threading

from jaxrl_mm import sharding

_ASKED = threading.Event()


class Preempted(Exception):
  """The run was asked to end and has saved; its message says where."""


def watch() -> None:
  """From here on SIGTERM asks a run to save and end, where it would kill it.

  Called behind `jax.distributed.initialize`, it takes the place of jax's own
  listener. That one names a single step to save at by a number that callers
  give, and orbax counts otherwise than we do, so its word could be lost.
  """
  signal.signal(signal.SIGTERM, lambda *_: _ASKED.set())


def is_near() -> bool:
  """Whether to save and end now; once it is, it stays so.

  All processes must ask equally often. They get the same answer, though the
  signal may have reached one of them alone; several wait for the programs in
  flight.
  """
  return sharding.sum_over_processes(float(_ASKED.is_set())) > 0


def check(kept: str) -> None:
  """Raises Preempted where the end is near; `kept` says what was saved."""
  if is_near():
    raise Preempted(f"{kept}; the same command continues")
