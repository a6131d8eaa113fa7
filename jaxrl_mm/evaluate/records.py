"""Records of a benchmark's files: JSON, JSON lines, CSV or parquet."""

import csv
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate.items import Picture

_Value = TypeVar("_Value")


class Record(NamedTuple):
  """One record of a file.

  Attributes:
    where: file and number, for messages.
    values: its fields.
    file: it was read from.
  """

  where: str
  values: dict[str, Any]
  file: Path


def read(folder: Path, split: str = "") -> list[Record]:
  """Records of all parquet files under a folder, else of all JSON files.

  Files come in the order of their names. Where the names of some begin with
  `split`, those alone are read: a folder as published holds other splits too.

  Raises:
    InputError: there are none, or one cannot be read.
  """
  for pattern in ("*.parquet", "*.jsonl", "*.json"):
    files = sorted(Path(folder).rglob(pattern))
    files = [f for f in files if f.name.startswith(split)] or files
    if files:
      return [record for file in files for record in read_file(file)]
  raise InputError(
    f"{folder} holds no parquet or JSON file; download the benchmark there"
  )


def read_file(path: Path) -> list[Record]:
  """Records of one file; a JSON file is a list, or one object a line."""
  readers = {".parquet": _parquet, ".csv": _csv}
  try:
    rows = readers.get(path.suffix, _json)(path)
  except ImportError as error:
    raise InputError(
      f"{path} needs pyarrow; install the extra: pip install "
      "'jaxrl_mm[benchmarks]'"
    ) from error
  except (OSError, ValueError) as error:  # pyarrow's and json's are ValueErrors
    raise InputError(f"cannot read {path} ({error}); download it again") from (
      error
    )
  for number, row in enumerate(rows, 1):
    if not isinstance(row, dict):
      raise InputError(f"{path}:{number} is not a record; download it again")
  return [Record(f"{path}:{n}", row, path) for n, row in enumerate(rows, 1)]


def _parquet(path: Path) -> list[dict]:
  # By name, for it is optional and nothing else needs it.
  return importlib.import_module("pyarrow.parquet").read_table(path).to_pylist()


def _csv(path: Path) -> list[dict]:
  with open(path, encoding="utf-8", newline="") as file:
    return list(csv.DictReader(file))


def _json(path: Path) -> list:
  text = path.read_text(encoding="utf-8")
  if text.lstrip().startswith("["):
    return json.loads(text)
  # Not splitlines: a JSON string may hold other line separators as they are.
  return [json.loads(line) for line in text.split("\n") if line.strip()]


def get(record: Record, key: str, kind: type[_Value]) -> _Value:
  """A field that has to be there and of its kind.

  Raises:
    InputError: it is not.
  """
  value = record.values.get(key)
  if not isinstance(value, kind):
    raise InputError(
      f"{record.where}: '{key}' is {type(value).__name__} and has to be "
      f"{kind.__name__}; is this the published file?"
    )
  return value


def pictures(
  folder: Path, record: Record, keys: Sequence[str]
) -> tuple[Picture, ...]:
  """The pictures in some fields; fields that are empty are skipped.

  A field holds a path under the folder, or what the hub's parquet files hold:
  `{"bytes", "path"}`.

  Raises:
    InputError: a file is not there.
  """
  found = (record.values.get(key) for key in keys)
  return tuple(_picture(folder, record, value) for value in found if value)


def _picture(folder: Path, record: Record, value: Any) -> Picture:
  if isinstance(value, dict) and value.get("bytes"):
    return value["bytes"]
  path = Path(folder) / str(
    value.get("path") if isinstance(value, dict) else value
  )
  if not path.is_file():
    raise InputError(
      f"{record.where}: the picture {path} is not there; download it"
    )
  return path
