"""Batches that are asked and train nothing, kept one by one.

The collection of pairs or of a pool of questions can take longer than a machine
stays; a run that was ended goes on behind the last whole batch.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxrl_mm import preemption, sharding
from jaxrl_mm.metrics import append_lines, write_text


def keep(
  path: Path,
  asked: Mapping[str, Any],
  starts: Sequence[int],
  make: Callable[[int], Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """What `make` gives for each start; only what is not in the file is made.

  Args:
    path: the file, JSON lines, in a folder that all processes see; the first
      one writes. Its first line is `asked`, then comes a line a batch.
    asked: all that batches depend on, but for how many there are; a file that
      was asked something else is begun anew.
    starts: numbers of the batches.
    make: makes a batch, the same on all processes.

  Raises:
    Preempted: the machine will be taken away; the batches so far are kept.
  """
  kept = _resume(path, json.loads(json.dumps(asked)))
  for start in starts[len(kept) :]:
    preemption.check(
      f"{path.parent.name} has kept {len(kept)} of {len(starts)} batches of "
      f"{path.name}"
    )
    batch = make(start)
    append_lines(path, [batch])
    kept.append(json.loads(json.dumps(batch)))
  return kept[: len(starts)]


def _resume(path, asked):
  """The whole batches of the file; what a kill has left of one is removed."""
  lines = 0
  if jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    whole = text.split("\n")[:-1]
    if not whole or json.loads(whole[0]) != asked:
      whole = [json.dumps(asked)]
    if (again := "".join(line + "\n" for line in whole)) != text:
      write_text(path, again)
    lines = len(whole)
  # Nobody reads before it is written.
  lines = int(sharding.of_first_process(str(lines)))
  return [json.loads(x) for x in path.read_text().split("\n")[1:lines]]
