"""What a whole data set holds, read in several processes."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl_mm.data import pictures, sets, storage
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.comparisons import Pair
from jaxrl_mm.data.sources import Example
from jaxrl_mm.errors import InputError

_CHUNK = 64
_SHOWN = 10
# A shorter question ("Find x.") is the same in many sets and says nothing.
_SHORTEST = 8
# Of words, as evaluations of language models look for copies.
_GRAM = 13
_WORD = re.compile(r"[a-z0-9]+|[^\W\d_a-z]")
_ENDINGS = (".parquet", ".jsonl", ".json", ".array_record", ".arrayrecord")


class Held(NamedTuple):
  """What evaluation sets hold, as hashes.

  Attributes:
    questions: of whole texts.
    grams: of every 13 words of them.
    pictures: of decoded pixels.
  """

  questions: frozenset[int] = frozenset()
  grams: frozenset[int] = frozenset()
  pictures: frozenset[int] = frozenset()


class Chunk(NamedTuple):
  """What some records hold.

  Attributes:
    numbers: of the sound records.
    keys: hash of all that a record says and shows.
    lengths: of each text field, one number a record.
    sizes: width and height of each picture.
    pictures: how many a record has.
    bad: name and reason.
    overlap: name, and what an evaluation set has too.
  """

  numbers: list[int]
  keys: list[int]
  lengths: dict[str, list[int]]
  sizes: list[tuple[int, int]]
  pictures: list[int]
  bad: list[tuple[str, str]]
  overlap: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Report:
  """What was found.

  Attributes:
    source: as it was asked for.
    records: that are used, sound or bad.
    left_out: sound records that are not used, by reason.
    bad: how many records cannot be read.
    first_bad: name and reason of the first ones.
    unit: of `lengths`, "tokens" or "words".
    lengths: of each text field: least, median, 99 % and most, and how many
      are below 1, 2, 4, ... of them.
    pictures: how many in all, how many records have none, and the same of
      their pixels.
    duplicates: records that say and show what an earlier one does.
    first_duplicates: names of the first ones, each with the earlier one.
    overlap: how many records an evaluation set has too, by what they share.
    first_overlap: name, and what is shared, of the first ones.
  """

  source: str
  records: int
  left_out: dict[str, int]
  bad: int
  first_bad: list[tuple[str, str]]
  unit: str
  lengths: dict[str, dict[str, Any]]
  pictures: dict[str, Any]
  duplicates: int
  first_duplicates: list[tuple[str, str]]
  overlap: dict[str, int]
  first_overlap: list[tuple[str, str]]


def check(
  source: str,
  *,
  evaluation: Sequence[Path] = (),
  model: str = "",
  processes: int = 1,
  progress: Callable[..., Iterable[Chunk]] = lambda chunks, total: chunks,
) -> Report:
  """Reads every record of a set.

  Args:
    source: see `sets.open_set`.
    evaluation: folders of sets that training must not have seen.
    model: folder of a tokenizer; without one words are counted.
    processes: that read; 1 is this one.
    progress: wraps the chunks and shows them.

  Raises:
    InputError: the set cannot be opened. Bad records are in the report.
  """
  opened = sets.open_set(source)
  if model:
    tok.load(model)
  held = gather(evaluation)
  starts = range(0, len(opened), _CHUNK)
  spans = [(n, min(n + _CHUNK, len(opened))) for n in starts]
  read = _in_processes if processes > 1 else _here
  found = read(source, model, held, spans, processes)
  chunks = list(progress(found, len(spans)))
  return _summarize(source, opened, "tokens" if model else "words", chunks)


def _here(source, model, held, spans, _) -> Iterator[Chunk]:
  inspect = _make_inspect(source, model, held)
  return map(inspect, spans)


def _in_processes(source, model, held, spans, processes) -> Iterator[Chunk]:
  # A fork of a process that has threads, as jax has, may never wake up.
  with ProcessPoolExecutor(
    processes, get_context("spawn"), _start, (source, model, held)
  ) as pool:
    yield from pool.map(_inspect_started, spans)


_started: list[Callable[[tuple[int, int]], Chunk]] = []


def _start(source, model, held) -> None:
  _started.append(_make_inspect(source, model, held))


def _inspect_started(span):
  return _started[0](span)


def _make_inspect(source, model, held):
  tokenizer = tok.load(model) if model else None
  count = (
    partial(_count_tokens, tokenizer) if tokenizer else lambda x: len(x.split())
  )
  return partial(_inspect, sets.open_set(source), count, held)


def _count_tokens(tokenizer, text):
  return len(tokenizer.encode(text, add_special_tokens=False))


def _inspect(opened, count, held, span) -> Chunk:
  """Reads the records from `span[0]` up to `span[1]`."""
  chunk = Chunk([], [], collections.defaultdict(list), [], [], [], [])
  for number in range(*span):
    try:
      record = opened.read(number)
    except InputError as error:
      name, _, reason = str(error).partition(": ")
      chunk.bad.append((name, reason))
      continue
    _add(chunk, number, record, count, held)
  return chunk._replace(lengths=dict(chunk.lengths))


def _add(chunk, number, record, count, held) -> None:
  texts = _texts(record)
  shown = [hash_pixels(x) for x in record.pictures]
  chunk.numbers.append(number)
  chunk.keys.append(_hash(repr((sorted(texts.items()), shown)).encode()))
  chunk.pictures.append(len(shown))
  chunk.sizes.extend(x.shape[1::-1] for x in record.pictures)
  for field, text in texts.items():
    chunk.lengths[field].append(count(text))
  shared = overlap(record.question, shown, held)
  if shared:
    chunk.overlap.append((record.name, shared))


def _texts(record: Pair | Example) -> dict[str, str]:
  if isinstance(record, Pair):
    fields = ("question", "better", "worse")
  else:
    fields = ("question", "answer")
  return {field: getattr(record, field) for field in fields}


# ---------------------------------------------------------------- overlap
def _hash(content: bytes) -> int:
  return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def hash_pixels(picture: np.ndarray) -> int:
  """The same for a picture in another file or another lossless format."""
  return _hash(repr(picture.shape).encode() + picture.tobytes())


def words(text: str) -> list[str]:
  """Without case and signs; of scripts without spaces, the characters."""
  return _WORD.findall(text.lower())


def grams(found: Sequence[str]) -> set[int]:
  """Hashes of every 13 words in a row."""
  runs = range(len(found) - _GRAM + 1)
  return {_hash(" ".join(found[i : i + _GRAM]).encode()) for i in runs}


def overlap(question: str, shown: Sequence[int], held: Held) -> str:
  """What evaluation sets have of a record too.

  Returns:
    "question" (the same words), "part of the question" (13 of them in a row),
    "picture", two of these joined by " and ", or nothing.
  """
  found, shared = words(question), []
  if len(found) >= _SHORTEST and _hash(" ".join(found).encode()) in (
    held.questions
  ):
    shared.append("question")
  elif not held.grams.isdisjoint(grams(found)):
    shared.append("part of the question")
  if not held.pictures.isdisjoint(shown):
    shared.append("picture")
  return " and ".join(shared)


def gather(folders: Sequence[Path]) -> Held:
  """All texts and pictures in evaluation sets, of whatever layout.

  Raises:
    InputError: a folder holds no file of records.
  """
  held = Held(set(), set(), set())
  for folder in folders:
    paths = sorted(p for p in folder.rglob("*") if p.suffix in _ENDINGS)
    if not paths:
      raise InputError(
        f"{folder} holds no file of records; name the folder of a downloaded "
        "evaluation set"
      )
    rows = storage.open_files(paths)
    for number in range(len(rows)):
      _gather(rows[number], rows.folder(number), held)
  return Held(*map(frozenset, held))


def _gather(value: Any, folder: Path, held: Held) -> None:
  """Walks through one record."""
  if isinstance(value, dict) and value.get("bytes"):
    value = value["bytes"]
  if isinstance(value, dict | list):
    inner = value.values() if isinstance(value, dict) else value
    for part in inner:
      _gather(part, folder, held)
  elif isinstance(value, str) and len(found := words(value)) >= _SHORTEST:
    held.questions.add(_hash(" ".join(found).encode()))
    held.grams.update(grams(found))
  if isinstance(value, str | bytes) and value:
    _gather_picture(value, folder, held)


def _gather_picture(value, folder, held) -> None:
  """Most texts are no pictures, and that is no error."""
  try:
    held.pictures.add(hash_pixels(pictures.read(value, folder, "")))
  except InputError:
    pass


# ---------------------------------------------------------------- summary
def _summarize(source, opened, unit, chunks) -> Report:
  all_of = lambda field: [x for c in chunks for x in getattr(c, field)]
  fields = {field for chunk in chunks for field in chunk.lengths}
  lengths = {
    field: [x for c in chunks for x in c.lengths.get(field, [])]
    for field in sorted(fields)
  }
  bad, shared = all_of("bad"), all_of("overlap")
  counts, sizes = all_of("pictures"), all_of("sizes")
  doubled = _duplicates(all_of("numbers"), all_of("keys"))
  name = lambda number: opened.raw(number).name
  return Report(
    source=source,
    records=len(opened),
    left_out=dict(opened.left_out),
    bad=len(bad),
    first_bad=bad[:_SHOWN],
    unit=unit,
    lengths={field: _spread(x) for field, x in lengths.items()},
    pictures={
      "count": sum(counts),
      "records_without": counts.count(0),
      "width": _spread([width for width, _ in sizes]),
      "height": _spread([height for _, height in sizes]),
    },
    duplicates=len(doubled),
    first_duplicates=[tuple(map(name, two)) for two in doubled[:_SHOWN]],
    overlap=dict(collections.Counter(what for _, what in shared)),
    first_overlap=shared[:_SHOWN],
  )


def _duplicates(numbers, keys) -> list[tuple[int, int]]:
  """Each record that repeats another, with the first of its kind."""
  first, doubled = {}, []
  for number, key in zip(numbers, keys):
    if first.setdefault(key, number) != number:
      doubled.append((number, first[key]))
  return doubled


def _spread(values: Sequence[int]) -> dict[str, Any]:
  """How numbers lie; `below[k]` counts those from 2 ** (k - 1) to 2 ** k."""
  if not values:
    return {}
  least, median, most_of, most = np.percentile(values, [0, 50, 99, 100])
  bins = np.bincount([int(value).bit_length() for value in values])
  return {
    "least": int(least),
    "median": float(median),
    "99 %": float(most_of),
    "most": int(most),
    "below": bins.tolist(),
  }
