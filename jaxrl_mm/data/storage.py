"""Records by number, from parquet, JSON lines, JSON lists and ArrayRecord.

Of a file only an index is kept in memory, except of a JSON list, which has
none. What is kept holds no open file and can be sent to other processes.
Nothing is ever unpickled.
"""

import importlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl_mm.errors import InputError

Values = dict[str, Any]
_SCAN_BYTES = 1 << 24


class Part(NamedTuple):
  """A file of records.

  Attributes:
    path: of the file.
    folder: where the paths of its pictures begin.
    rows: how many records.
    read: a record by its number.
    scan: some fields of all records, in order.
  """

  path: Path
  folder: Path
  rows: int
  read: Callable[[int], Any]
  scan: Callable[[Sequence[str]], Iterator[Any]]


class Rows:
  """The records of several files, one after the other."""

  def __init__(self, parts: Sequence[Part]):
    self._parts = tuple(parts)
    self._ends = np.cumsum([part.rows for part in parts], dtype=np.int64)

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def _locate(self, number: int) -> tuple[Part, int]:
    place = int(np.searchsorted(self._ends, number, side="right"))
    part = self._parts[place]
    return part, number - int(self._ends[place]) + part.rows

  def name(self, number: int) -> str:
    """File and number from 1, for messages."""
    part, row = self._locate(number)
    return f"{part.path}:{row + 1}"

  def folder(self, number: int) -> Path:
    """Where the paths of a record's pictures begin."""
    return self._locate(number)[0].folder

  def __getitem__(self, number: int) -> Values:
    """A record.

    Raises:
      InputError: it cannot be read.
    """
    part, row = self._locate(number)
    try:
      values = part.read(row)
    except (OSError, ValueError, RecursionError) as error:
      # The errors of json, of pyarrow and of bad UTF-8 are ValueErrors.
      reason = " ".join(str(error).split())
      raise InputError(
        f"{self.name(number)}: cannot be read ({reason})"
      ) from error
    if not isinstance(values, dict):
      raise InputError(f"{self.name(number)}: the record is no object")
    return values

  def scan(self, fields: Sequence[str]) -> Iterator[Any]:
    """Some fields of every record; None for one that cannot be read."""
    return itertools.chain(*(part.scan(fields) for part in self._parts))


def open_files(
  paths: Sequence[Path], folders: Sequence[Path] | None = None
) -> Rows:
  """Opens files of any of the kinds, told apart by their endings.

  Args:
    paths: .parquet, .jsonl, .json (one list, or one object a line),
      .array_record or .arrayrecord.
    folders: where the paths of each file's pictures begin; its own folder
      where not given.

  Raises:
    InputError: a file cannot be opened.
  """
  folders = folders or [path.parent for path in paths]
  return Rows([_open(*pair) for pair in zip(paths, folders, strict=True)])


def _open(path: Path, folder: Path) -> Part:
  if path.suffix not in _KINDS:
    known = ", ".join(_KINDS)
    raise InputError(f"{path} is no file of records; known endings are {known}")
  try:
    return _KINDS[path.suffix](path, folder)
  except ImportError as error:
    raise InputError(
      f"{path} needs the package {error.name}; install the extra: pip install "
      "'jaxrl_mm[data]'"
    ) from error
  except (OSError, ValueError, RuntimeError) as error:
    reason = " ".join(str(error).split())
    raise InputError(
      f"cannot read the data file {path} ({reason}); download it again"
    ) from error


def _each(read, rows, fields) -> Iterator[Any]:
  """The scan of files that are not stored field by field."""
  for row in range(rows):
    try:
      yield read(row)
    except (OSError, ValueError, RecursionError):
      yield None


# -------------------------------------------------------------- JSON lines
def _json(path: Path, folder: Path) -> Part:
  with path.open("rb") as file:
    is_list = file.read(64).lstrip().startswith(b"[")
  return (_json_list if is_list else _json_lines)(path, folder)


def _json_lines(path: Path, folder: Path) -> Part:
  spans = _spans(path)
  read = partial(_line, path, spans)
  return Part(path, folder, len(spans), read, partial(_each, read, len(spans)))


def _spans(path: Path) -> np.ndarray:
  """[lines, 2] the first byte of each line that is not blank, and its end."""
  ends, offset = [], 0
  with path.open("rb") as file:
    while block := file.read(_SCAN_BYTES):
      found = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
      ends.append(found + offset)
      offset += len(block)
  ends = np.concatenate([*ends, [offset]]).astype(np.int64)
  spans = np.stack([np.concatenate([[0], ends[:-1] + 1]), ends], axis=1)
  # A line of one byte is the "\r" of a blank line, or no record anyway.
  return spans[spans[:, 1] - spans[:, 0] > 1]


def _line(path: Path, spans: np.ndarray, row: int) -> Any:
  start, end = (int(x) for x in spans[row])
  # A handle of its own: a shared one has a position that threads disturb.
  with path.open("rb") as file:
    file.seek(start)
    return json.loads(file.read(end - start))


def _json_list(path: Path, folder: Path) -> Part:
  read, rows = partial(_item, path), len(_whole(path))
  return Part(path, folder, rows, read, partial(_each, read, rows))


def _item(path: Path, row: int) -> Any:
  return _whole(path)[row]


@cache
def _whole(path: Path) -> list:
  return json.loads(path.read_bytes())


# ----------------------------------------------------------------- parquet
def _parquet(path: Path, folder: Path) -> Part:
  rows = _footer(path).num_rows
  read, scan = partial(_parquet_row, path), partial(_columns, path)
  return Part(path, folder, rows, read, scan)


@cache
def _footer(path: Path) -> Any:
  # By name, for it is optional and nothing else needs it.
  return importlib.import_module("pyarrow.parquet").read_metadata(path)


@cache
def _group_ends(path: Path) -> np.ndarray:
  footer = _footer(path)
  groups = range(footer.num_row_groups)
  return np.cumsum([footer.row_group(i).num_rows for i in groups])


# A row group is the least that parquet can read; two are kept, for readers
# that go in order.
@lru_cache(maxsize=2)
def _group(path: Path, number: int) -> Any:
  parquet = importlib.import_module("pyarrow.parquet")
  file = parquet.ParquetFile(path, metadata=_footer(path), memory_map=True)
  return file.read_row_group(number)


def _parquet_row(path: Path, row: int) -> Values:
  ends = _group_ends(path)
  number = int(np.searchsorted(ends, row, side="right"))
  group = _group(path, number)
  return group.slice(row - int(ends[number]) + len(group), 1).to_pylist()[0]


def _columns(path: Path, fields: Sequence[str]) -> Iterator[Values]:
  parquet = importlib.import_module("pyarrow.parquet")
  file = parquet.ParquetFile(path, metadata=_footer(path), memory_map=True)
  for batch in file.iter_batches(columns=list(fields)):
    yield from batch.to_pylist()


# ------------------------------------------------------------- ArrayRecord
def _array_record(path: Path, folder: Path) -> Part:
  if not _reader(path).ok():
    raise ValueError("it is no ArrayRecord file")
  rows, read = _reader(path).num_records(), partial(_array_row, path)
  return Part(path, folder, rows, read, partial(_each, read, rows))


@cache
def _reader(path: Path) -> Any:
  module = importlib.import_module("array_record.python.array_record_module")
  # What its authors advise for random access.
  return module.ArrayRecordReader(
    str(path), options="readahead_buffer_size:0,max_parallelism:0"
  )


def _array_row(path: Path, row: int) -> Any:
  return json.loads(_reader(path).read([row])[0])


_KINDS = {
  ".parquet": _parquet,
  ".jsonl": _json_lines,
  ".json": _json,
  ".array_record": _array_record,
  ".arrayrecord": _array_record,
}
