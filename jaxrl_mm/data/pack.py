"""A data set again, in ArrayRecord files of our own layout."""

import base64
import importlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jaxrl_mm.data import pictures, sets
from jaxrl_mm.data.comparisons import Pair
from jaxrl_mm.errors import InputError

_PER_FILE = 10_000


def pack(
  source: str,
  out: Path,
  *,
  progress: Callable[..., Iterable[int]] = lambda numbers, total: numbers,
) -> int:
  """Writes what `pairs:OUT` or `questions:OUT` reads.

  Pictures keep their files' bytes. Bad records end it: `check` finds them
  before, and all at once.

  Args:
    source: see `sets.open_set`.
    out: a folder that does not exist.
    progress: wraps the numbers of the records and shows them.

  Returns:
    How many records were written.
  """
  opened = sets.open_set(source)
  if out.exists():
    raise InputError(f"{out} exists already; name a new folder")
  out.mkdir(parents=True)
  module = importlib.import_module("array_record.python.array_record_module")
  writer = None
  for number in progress(range(len(opened)), len(opened)):
    if number % _PER_FILE == 0:
      if writer:
        writer.close()
      path = out / f"{number // _PER_FILE:05d}.array_record"
      # A record a chunk: what is read together is stored together.
      writer = module.ArrayRecordWriter(str(path), "group_size:1")
    writer.write(json.dumps(_values(opened, number)).encode())
  writer.close()
  return len(opened)


def _values(opened, number) -> dict[str, Any]:
  record, folder = opened.raw(number), opened.folder(number)
  encode = lambda picture: base64.b64encode(
    pictures.content(picture, folder, record.name)
  ).decode()
  shown = {"images": [encode(picture) for picture in record.pictures]}
  if isinstance(record, Pair):
    texts = {"chosen": record.better, "rejected": record.worse}
  else:
    fields = ("answer", "demonstration", "facts")
    texts = {field: getattr(record, field) for field in fields}
  return shown | {"question": record.question} | texts
