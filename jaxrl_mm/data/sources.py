"""Where examples come from: random access by number, nothing kept in memory
that a file already holds."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import sklearn.datasets

from jaxrl_mm.data import pictures
from jaxrl_mm.errors import InputError


class Example(NamedTuple):
  """A question about pictures.

  Attributes:
    name: says which one it is, in messages and samples.
    pictures: uint8, [height, width, 3] each, or [frames, height, width, 3] of
      a video.
    question: the user's text.
    answer: the truth the graders compare with.
    demonstration: a completion to imitate, empty where there is none.
    facts: what is in the pictures, as far as it is known: the digits, with
      commas.
    earlier: what user and assistant said before the question, in turn.
  """

  name: str
  pictures: tuple[np.ndarray, ...]
  question: str
  answer: str
  demonstration: str = ""
  facts: str = ""
  earlier: tuple[str, ...] = ()


@runtime_checkable
class Source(Protocol):
  """A sequence of examples."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


# ---------------------------------------------------------------- digits
DIGITS_HELD_OUT = {"validation": 150, "test": 350}
_QUESTIONS = ("What is the sum?", "Which is larger?", "How many {}s?")
_SHARES = (0.5, 0.25, 0.25)
_NAMES = (
  "zero one two three four five six seven eight nine".split()  # of digits
)


class Digits:
  """Real handwritten digits side by side, and a question about them.

  The 1,797 scans of 8x8 pixels that ship with scikit-learn. 350 are kept for
  the test split and 150 for validation, always the same; the rest is for
  training. Example i is made from `(seed, i)` alone: the sum of two
  digits (half of the questions), or the largest, or how many of a kind, of two
  or three.

  Args:
    split: "train", "validation" or "test".
    size: number of examples.
    seed: chooses digits and questions.
    labelled: use only this many digits of the split, the same number of each
      kind, chosen by the seed; 0 uses all.
  """

  def __init__(self, split: str, *, size: int, seed: int, labelled: int = 0):
    scans = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(scans.target))
    test, validation = DIGITS_HELD_OUT["test"], DIGITS_HELD_OUT["validation"]
    parts = np.split(order, [test, test + validation])
    pool = dict(zip(("test", "validation", "train"), parts))[split]
    if labelled > len(pool):
      raise InputError(
        f"{labelled} labelled digits are asked for and {split} has {len(pool)}"
      )
    if labelled:
      pool = _balanced(pool, scans.target, labelled, seed)
    grey = np.round(scans.images[pool] * (255 / 16)).astype(np.uint8)
    self._scans, self._labels = grey, scans.target[pool]
    self._split, self._size, self._seed = split, size, seed

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Example:
    rng = np.random.default_rng((self._seed, index))
    kind = rng.choice(3, p=_SHARES)
    count = 2 if kind == 0 else rng.integers(2, 4)
    chosen = rng.integers(len(self._labels), size=count)
    grey = np.concatenate(list(self._scans[chosen]), axis=1)
    digits = [int(d) for d in self._labels[chosen]]
    question = _ask(kind, digits, rng)
    thought, answer = solve(question, digits)
    return Example(
      name=f"digits/{self._split}/{index}",
      pictures=(np.repeat(grey[:, :, None], 3, axis=2),),
      question=question,
      answer=answer,
      demonstration=f"<think>{thought}</think><answer>{answer}</answer>",
      facts=",".join(map(str, digits)),
    )


def _ask(kind, digits, rng):
  if kind < 2:
    return _QUESTIONS[kind]
  # Half of the time one that is there, or "0" would be a good blind guess.
  asked = int(rng.choice(digits) if rng.random() < 0.5 else rng.integers(10))
  return _QUESTIONS[2].format(_NAMES[asked])


def solve(question: str, digits: Sequence[int]) -> tuple[str, str]:
  """The reasoning that answers a question about digits, and the answer."""
  seen = ",".join(map(str, digits))
  if question == _QUESTIONS[0]:
    total = str(sum(digits))
    return "+".join(map(str, digits)) + f"={total}", total
  if question == _QUESTIONS[1]:
    return seen, str(max(digits))
  counts = {_QUESTIONS[2].format(_NAMES[d]): digits.count(d) for d in range(10)}
  return seen, str(counts[question])


def _balanced(pool, target, count, seed):
  """The first `count` of the shuffled pool with equally many of each digit."""
  pool = np.random.default_rng(seed).permutation(pool)
  rank = np.zeros(len(pool), int)
  for digit in range(10):
    of_kind = target[pool] == digit
    rank[of_kind] = np.arange(of_kind.sum())
  return pool[np.argsort(rank, kind="stable")][:count]


def digits_texts() -> list[str]:
  """Every word and sign the digits task uses, for its tokenizer."""
  questions = [q.format(n) for q in _QUESTIONS for n in _NAMES]
  return [*questions, "0123456789+=,\n", "user", "assistant", "system"]


# ------------------------------------------------------------ JSON lines
class JsonLines:
  """A file of records `{["image", ]"question", "answer"[, "demonstration"]}`.

  `image` is a path relative to the file, or a list of them; a record without
  it is text alone. The whole file is checked when it is opened, so that a bad
  record stops a run before it starts. Records of the form that R1-Reward
  publishes, `{"message", "answer"}`, are read as what they mean.

  Args:
    path: of the file.
    fields: what every record must have.
  """

  def __init__(self, path: str, fields: Sequence[str] = ("question", "answer")):
    self._fields = fields
    self._folder = Path(path).parent
    try:
      text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
      raise InputError(f"cannot read the data file {path}: {error}") from error
    # Not splitlines: a JSON string may hold other line separators as they are.
    lines = [(f"{path}:{n}", x) for n, x in enumerate(text.split("\n"), 1)]
    self._records = [
      (where, self._check(where, line)) for where, line in lines if line.strip()
    ]
    if not self._records:
      raise InputError(f"the data file {path} holds no records")

  def _check(self, where: str, line: str) -> dict:
    try:
      record = json.loads(line)
    except json.JSONDecodeError as error:
      raise InputError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict):
      raise InputError(f"{where}: the record is no object in braces")
    if "message" in record:
      record = _from_message(where, record)
    for key in ("image", *self._fields):
      value = record.get(key, "" if key != "image" else "none needed")
      if value is None or not str(value).strip():
        raise InputError(f"{where}: the record has no '{key}'")
    for image in self._images(record):
      if not image.is_file():
        raise InputError(f"{where}: the image {image} does not exist")
    return record

  def _images(self, record: dict) -> list[Path]:
    named = record.get("image", [])
    named = named if isinstance(named, list) else [named]
    return [self._folder / str(name) for name in named]

  def __len__(self) -> int:
    return len(self._records)

  def records(self) -> list[tuple[str, dict]]:
    """The name of each record, and the record."""
    return self._records

  def undemonstrated(self) -> str | None:
    """The first record without a demonstration, if there is one."""
    bare = (w for w, r in self._records if not r.get("demonstration"))
    return next(bare, None)

  def pictures(self, index: int) -> tuple[np.ndarray, ...]:
    """The pictures of a record."""
    where, record = self._records[index]
    return tuple(
      pictures.read(str(path), Path(), where) for path in self._images(record)
    )

  def __getitem__(self, index: int) -> Example:
    where, record = self._records[index]
    return Example(
      name=where,
      pictures=self.pictures(index),
      question=str(record["question"]),
      answer=str(record["answer"]),
      demonstration=str(record.get("demonstration") or ""),
      facts=str(record.get("facts") or ""),
    )


def _from_message(where, record):
  """One user turn of a text and an image, and a list of right answers."""
  try:
    parts = json.loads(record["message"])[0]["content"]
    values = {part["type"]: part[part["type"]] for part in parts}
    (answer,) = record["answer"]
  except (TypeError, LookupError, ValueError) as error:
    raise InputError(
      f"{where}: 'message' has to be JSON of one user turn with a text and an "
      f"image, and 'answer' a list of one text ({error!r})"
    ) from error
  return {
    "image": values.get("image"),
    "question": values.get("text"),
    "answer": re.sub("</?answer>", "", answer),
  }


# ------------------------------------------------------------------ sums
class Sums:
  """Sums of two numbers as text, to try a language model without pictures.

  Numbers of two digits; a tenth of all pairs is kept for the test split, a
  tenth for validation.

  Args:
    split: "train", "validation" or "test".
    size: number of examples.
    seed: chooses the numbers.
  """

  def __init__(self, split: str, *, size: int, seed: int):
    pairs = np.random.default_rng(0).permutation(90 * 90)
    parts = np.split(pairs, [len(pairs) // 10, len(pairs) // 5])
    self._pairs = dict(zip(("test", "validation", "train"), parts))[split]
    self._split, self._size, self._seed = split, size, seed

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Example:
    rng = np.random.default_rng((self._seed, index))
    a, b = (int(n) + 10 for n in divmod(rng.choice(self._pairs), 90))
    return Example(
      name=f"sums/{self._split}/{index}",
      pictures=(),
      question=(
        f"What is {a} + {b}? Reply with the number alone, between <answer> and "
        "</answer>."
      ),
      answer=str(a + b),
      demonstration=f"<answer>{a + b}</answer>",
    )


class Written:
  """The examples of a source as text: facts in place of their pictures."""

  def __init__(self, source: Source):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example:
    example = self._source[index]
    question = f"{example.facts}\n{example.question}"
    return example._replace(pictures=(), question=question)


class Subset:
  """Some examples of a source."""

  def __init__(self, source: Source, numbers: Sequence[int]):
    self._source, self._numbers = source, numbers

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: int) -> Example:
    return self._source[self._numbers[index] % len(self._source)]


class Alternating:
  """Examples of several sources in turn; it ends with the shortest."""

  def __init__(self, parts: Sequence[Source]):
    self._parts = parts

  def __len__(self) -> int:
    return len(self._parts) * min(map(len, self._parts))

  def __getitem__(self, index: int) -> Example:
    number, part = divmod(index, len(self._parts))
    return self._parts[part][number]


def check_demonstrations(source: Source) -> None:
  """Raises InputError if a record of a file has nothing to imitate."""
  if isinstance(source, JsonLines) and (name := source.undemonstrated()):
    raise InputError(
      f"{name}: the record has no 'demonstration', which supervised training "
      "needs"
    )


def open_source(
  name: str, *, size: int, seed: int, labelled: int = 0
) -> Source:
  """The source a config names.

  Args:
    name: "digits/train", "digits/validation", "digits/test", the same of
      "sums", or the path of a JSON-lines file.
    size, seed, labelled: see `Digits` and `Sums`; a file has its own size.
  """
  family, _, split = name.partition("/")
  if family not in ("digits", "sums"):
    return JsonLines(name)
  check_split(name)
  if family == "sums":
    return Sums(split, size=size, seed=seed)
  return Digits(split, size=size, seed=seed, labelled=labelled)


def check_split(name: str) -> None:
  """Raises InputError if `name` does not end in a split."""
  family, _, split = name.partition("/")
  if split not in ("train", *DIGITS_HELD_OUT):
    raise InputError(
      f"there is no '{name}'; the {family} have train, validation and test"
    )
