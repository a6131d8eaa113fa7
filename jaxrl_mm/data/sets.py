"""Published data sets as sources: by number, with their pictures decoded."""

import collections
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_mm.data import comparisons, pictures, storage
from jaxrl_mm.data.comparisons import Comparisons, Pair, Pairs
from jaxrl_mm.data.published import PAIRS, PROMPTS, Published
from jaxrl_mm.data.sources import Example, Source
from jaxrl_mm.data.storage import Rows
from jaxrl_mm.errors import InputError

SETS = PAIRS | PROMPTS
_JOINT = " + "
# Held-out records are never passed over: numbers would not be comparable.
_HINT = (
  "mend or remove the record, or set config.data.skip_bad=True, which passes "
  "over records of training"
)


class Records:
  """The records of a set that are used.

  Only an index is kept: it can be sent to other processes, and a record is
  read when it is asked for.

  Attributes:
    left_out: how many sound records are not used, by reason.
  """

  def __init__(self, published: Published, rows: Rows):
    self._read, self._rows = published.read, rows
    self._numbers, self.left_out = _choose(published, rows)

  def __len__(self) -> int:
    return len(self._numbers)

  def read(self, index: int) -> Pair | Example:
    """A record.

    Raises:
      InputError: "file:line: reason".
    """
    record, folder = self.raw(index), self.folder(index)
    shown = (pictures.read(p, folder, record.name) for p in record.pictures)
    return record._replace(pictures=tuple(shown))

  def __getitem__(self, index: int) -> Pair | Example:
    try:
      return self.read(index)
    except InputError as error:
      raise InputError(f"{error}; {_HINT}") from error

  def raw(self, index: int) -> Pair | Example:
    """A record whose pictures are as it holds them, for `pictures.read`."""
    number = int(self._numbers[index])
    values, where = self._rows[number], self._rows.name(number)
    try:
      return self._read(values)._replace(name=where)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
      raise InputError(f"{where}: {error}") from error

  def folder(self, index: int) -> Path:
    """Where the paths of a record's pictures begin."""
    return self._rows.folder(int(self._numbers[index]))


class Joined:
  """Several sets, one after the other."""

  def __init__(self, parts: Sequence[Records]):
    self._parts = parts
    self._ends = np.cumsum([len(part) for part in parts])
    self.left_out = sum((part.left_out for part in parts), start=_none())

  def __len__(self) -> int:
    return int(self._ends[-1])

  def _locate(self, index: int) -> tuple[Records, int]:
    place = int(np.searchsorted(self._ends, index, side="right"))
    part = self._parts[place]
    return part, index - int(self._ends[place]) + len(part)

  def read(self, index: int) -> Pair | Example:
    """See `Records.read`."""
    part, number = self._locate(index)
    return part.read(number)

  def raw(self, index: int) -> Pair | Example:
    """See `Records.raw`."""
    part, number = self._locate(index)
    return part.raw(number)

  def folder(self, index: int) -> Path:
    """See `Records.folder`."""
    part, number = self._locate(index)
    return part.folder(number)

  def __getitem__(self, index: int) -> Pair | Example:
    part, number = self._locate(index)
    return part[number]


def _none() -> collections.Counter:
  return collections.Counter()


def _choose(
  published: Published, rows: Rows
) -> tuple[np.ndarray, collections.Counter]:
  """Numbers of the records that are used, and why the others are not."""
  reason_of, left_out = published.leaves_out, _none()
  if reason_of is None:
    return np.arange(len(rows)), left_out
  kept = []
  for number, values in enumerate(_scan(published, rows)):
    reason = _reason(reason_of, values)
    left_out[reason] += 1
    if not reason:
      kept.append(number)
  del left_out[""]
  return np.array(kept, np.int64), left_out


def _scan(published: Published, rows: Rows) -> Iterator[Any]:
  try:
    yield from rows.scan(published.asks)
  except (OSError, ValueError) as error:  # pyarrow's are of these kinds
    reason = " ".join(str(error).split())
    raise InputError(
      f"the files beside {rows.name(0)} cannot be read through ({reason}); "
      "download them again"
    ) from error


def _reason(reason_of, values) -> str:
  """A record with another layout stays in: it is bad, and will be named."""
  try:
    return reason_of(values)
  except (ValueError, TypeError, LookupError, AttributeError):
    return ""


def is_set(name: str) -> bool:
  """Whether a config names a published set, "SET:PATH"."""
  return name.partition(":")[0] in SETS


def holds_pairs(name: str) -> bool:
  """Whether it is one of pairs of responses."""
  return name.partition(":")[0] in PAIRS


def open_set(name: str) -> Records | Joined:
  """Opens a set that was downloaded before.

  Args:
    name: "SET:PATH", PATH a folder or a file; or several, joined by " + ".

  Raises:
    InputError: there is no such set, nothing of it is there, or pairs are
      joined with questions.
  """
  parts = name.split(_JOINT)
  if len({holds_pairs(part) for part in parts}) > 1:
    raise InputError(f"'{name}' joins pairs of responses with questions")
  opened = [_open_one(part.strip()) for part in parts]
  return opened[0] if len(opened) == 1 else Joined(opened)


def _open_one(name):
  kind, _, path = name.partition(":")
  if kind not in SETS:
    raise InputError(
      f"there is no data set '{kind}'; write SET:PATH, SET one of "
      f"{', '.join(SETS)}"
    )
  records = Records(SETS[kind], _open_path(kind, Path(path).expanduser()))
  if not len(records):
    raise InputError(f"{path} holds no record of {kind} that can be used")
  return records


def _open_path(kind: str, path: Path) -> Rows:
  if path.name == "meta.json":
    return _open_meta(path)
  if path.is_file():
    return storage.open_files([path])
  for pattern in SETS[kind].files:
    files = sorted(path.glob(pattern))
    if files and files[0].name == "meta.json":
      return _open_meta(files[0])
    if files:
      return storage.open_files(files, [path] * len(files))
  raise InputError(
    f"{path} holds none of the files of {kind} "
    f"({', '.join(SETS[kind].files)}); download the set there"
  )


def _open_meta(path: Path) -> Rows:
  """The parts that MMPR's meta.json names."""
  try:
    parts = json.loads(path.read_bytes()).values()
    found = [(part["annotation"], part["root"]) for part in parts]
  except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
    raise InputError(
      f"{path} does not name 'annotation' and 'root' of each part ({error!r}); "
      "download it again"
    ) from error
  here = lambda name: path.parent / _without_set(name)
  return storage.open_files(
    *([here(n) for n in column] for column in zip(*found))
  )


def _without_set(name: str) -> str:
  """The published paths begin with the folder of the set itself."""
  first, _, rest = name.partition("/")
  return rest if first.startswith("MMPR") else name


def open_source(
  name: str,
  *,
  size: int,
  seed: int,
  labelled: int = 0,
  both_orders: bool = False,
) -> Source:
  """Questions: of a published set, or what `comparisons.open_source` knows.

  Args:
    name: see `open_set`; pairs of responses become questions to a judge.
    size, seed, labelled, both_orders: see `comparisons.open_source`; a
      published set has its own size.
  """
  if not is_set(name):
    return comparisons.open_source(
      name, size=size, seed=seed, labelled=labelled, both_orders=both_orders
    )
  opened = open_set(name)
  if holds_pairs(name):
    return Comparisons(opened, both_orders=both_orders)
  return opened


def open_pairs(name: str, *, size: int, seed: int) -> Pairs:
  """Pairs of responses: of a published set, or of `comparisons.open_pairs`.

  Raises:
    InputError: the set is one of questions.
  """
  if not is_set(name):
    return comparisons.open_pairs(name, size=size, seed=seed)
  if not holds_pairs(name):
    raise InputError(
      f"'{name}' holds questions and no pairs of responses; sets of pairs are "
      f"{', '.join(PAIRS)}"
    )
  return open_set(name)
