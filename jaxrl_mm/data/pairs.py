"""Preference pairs: records of them beside the questions they belong to.

They are made of a policy's own answers, or given by a data set.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_mm.data import comparisons, loader
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.loader import Layout
from jaxrl_mm.data.sources import Example, Source
from jaxrl_mm.data.tokenizer import Tokenizer
from jaxrl_mm.errors import InputError
from jaxrl_mm.structs import Pairs


@dataclasses.dataclass(frozen=True)
class Record:
  """One pair; of each two, the better completion's is first.

  Attributes:
    index: of the question in its source.
    texts: what was written, for people.
    tokens: ids of it.
    scores: of the reward model.
    reference_logp: log-prob of the completion under the policy that wrote it.
  """

  index: int
  texts: tuple[str, str]
  tokens: tuple[Sequence[int], Sequence[int]]
  scores: tuple[float, float]
  reference_logp: tuple[float, float]

  @property
  def gap(self) -> float:
    """By how much the better one's score is higher."""
    return self.scores[0] - self.scores[1]


class Pair(NamedTuple):
  """A record with its question."""

  record: Record
  example: Example


class PairSource:
  """Pairs by number; the pictures stay in the source of the questions."""

  def __init__(self, records: Sequence[Record], examples: Source):
    self._records, self._examples = records, examples

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, number: int) -> Pair:
    record = self._records[number]
    return Pair(record, self._examples[record.index])


class Given:
  """The questions of pairs that somebody else has made."""

  def __init__(self, pairs: comparisons.Pairs):
    self._pairs = pairs

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, index: int) -> Example:
    return _question(self._pairs[index])

  def pair(self, index: int, tokenizer: Tokenizer) -> Pair:
    """The two responses as a record that nobody has scored yet."""
    return _unscored(self._pairs[index], index, tokenizer)


def _unscored(given: comparisons.Pair, index: int, tokenizer: Tokenizer):
  texts = (given.better, given.worse)
  record = Record(
    index=index,
    texts=texts,
    tokens=tuple(tok.completion_ids(tokenizer, text) for text in texts),
    scores=(0.0, 0.0),
    reference_logp=(0.0, 0.0),
  )
  return Pair(record, _question(given))


def encode_given(
  given: comparisons.Pair, number: int, tokenizer: Tokenizer, layout: Layout
) -> Pairs:
  """A row of `Pairs` that nobody has scored; see `encode`."""
  return encode(_unscored(given, number, tokenizer), number, tokenizer, layout)


def _question(given: comparisons.Pair) -> Example:
  return Example(given.name, given.pictures, given.question, answer="")


def parse(fields: Mapping[str, Any]) -> Record:
  """The record whose fields were written as JSON."""
  as_tuple = lambda v: tuple(v) if isinstance(v, list) else v
  return Record(**{k: as_tuple(v) for k, v in fields.items()})


def encode(
  pair: Pair, number: int, tokenizer: Tokenizer, layout: Layout
) -> Pairs:
  """One row of `Pairs`, as numpy, without the batch axis."""
  record, example = pair
  length = layout.completion_tokens
  tokens = np.full((2, length), tokenizer.pad_token_id, np.int32)
  mask = np.zeros((2, length), bool)
  for row, ids in enumerate(record.tokens):
    if len(ids) > length:
      raise InputError(
        f"pair {example.name}: a completion has {len(ids)} tokens and "
        f"config.data.completion_tokens is {length}; raise it"
      )
    tokens[row, : len(ids)] = ids
    mask[row, : len(ids)] = True
  return Pairs(
    prompts=loader.encode_prompt(example, number, tokenizer, layout),
    tokens=tokens,
    mask=mask,
    reference_logp=np.array(record.reference_logp, np.float32),
  )
