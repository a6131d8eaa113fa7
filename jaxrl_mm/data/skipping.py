"""Bad records of a run: passed over, named and counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxrl_mm.data.comparisons import Pairs
from jaxrl_mm.data.sources import Source
from jaxrl_mm.errors import InputError

# So many in a row are no accident.
_LIMIT = 100


class Sound:
  """A source, or pairs, in which the next good record stands for a bad one.

  Which one that is depends on the number alone, so a run that is continued
  sees what it would have seen, and no process has to know of another's.

  Args:
    source: the records.
    fits: raises InputError for one that cannot be trained on.
    tell: is given the number of a bad record, and why it is one; often the
      same.
  """

  def __init__(
    self,
    source: Source | Pairs,
    fits: Callable[[Any], object],
    tell: Callable[[int, str], None],
  ):
    self._source, self._fits, self._tell = source, fits, tell

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Any:
    for place in range(index, index + _LIMIT):
      number = place % len(self._source)
      try:
        record = self._source[number]
        self._fits(record)
        return record
      except InputError as error:
        self._tell(number, str(error))
        reason = error
    raise InputError(
      f"none of {_LIMIT} records in a row can be trained on; the last: {reason}"
    )


def read(path: Path) -> list[dict[str, Any]]:
  """What `make_tell` has written; a line cut short by a kill is left out."""
  if not path.exists():
    return []
  *whole, _ = path.read_text(encoding="utf-8").split("\n")
  return [json.loads(line) for line in whole]


def make_tell(path: Path, source: str) -> Callable[[int, str], None]:
  """A function that adds a line for each bad record, the first time.

  Args:
    path: of the JSON lines, {"source", "record", "reason"}.
    source: as the config names it.
  """
  lines = read(path)
  told = {line["record"] for line in lines if line["source"] == source}
  if path.exists():
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

  def tell(number: int, reason: str) -> None:
    if number not in told:
      told.add(number)
      line = {"source": source, "record": number, "reason": reason}
      with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")

  return tell
