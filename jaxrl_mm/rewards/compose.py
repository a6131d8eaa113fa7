"""A reward is a weighted sum of named terms."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

Reward = Callable[[Sequence[str], Sequence[str]], np.ndarray]


class Term(NamedTuple):
  """One part of a reward.

  Attributes:
    reward: `(completions, truths) -> [B]` float32.
    weight: its factor in the sum; one of weight 0 is watched only.
    verifiable: decided by a rule, not by a learned score or a judge.
    truth: what it compares with: the answer, or the facts of the picture.
  """

  reward: Reward
  weight: float = 1.0
  verifiable: bool = True
  truth: Literal["answer", "facts"] = "answer"


class Scores(NamedTuple):
  """Rewards of B completions.

  Attributes:
    total: [B] the weighted sum.
    verifiable: [B] the part of it that rules decided.
    terms: [B] of each term, without its weight.
    failures: of each term, how many completions its grader failed on; they
      have zero there.
  """

  total: np.ndarray
  verifiable: np.ndarray
  terms: dict[str, np.ndarray]
  failures: dict[str, int]


def score(
  terms: Mapping[str, Term],
  completions: Sequence[str],
  answers: Sequence[str],
  facts: Sequence[str] = (),
) -> Scores:
  """Scores each completion by every term; all results are float32 [B].

  `facts` are only needed by terms that compare with them.

  A rule that raises on a completion gives it zero, is counted and logged. A
  learned score or a judge that raises is down, which is an error of the step.
  """
  raw, failures = {}, {}
  for name, term in terms.items():
    truths = facts if term.truth == "facts" else answers
    if term.verifiable:
      raw[name], failures[name] = _grade(name, term, completions, truths)
    else:
      raw[name], failures[name] = term.reward(completions, truths), 0
  zero = np.zeros(len(completions), np.float32)
  total = sum((t.weight * raw[n] for n, t in terms.items()), zero)
  ruled = sum(
    (t.weight * raw[n] for n, t in terms.items() if t.verifiable), zero
  )
  return Scores(total, ruled, raw, failures)


def _grade(name, term, completions, answers):
  """All at once; one by one if that raises, so that one cannot spoil all."""
  try:
    return term.reward(completions, answers), 0
  except Exception:  # whatever a grader of free text may raise
    rows = [_grade_one(term, *row) for row in zip(completions, answers)]
  errors = [row for row in rows if isinstance(row, Exception)]
  if errors:
    logging.warning(
      "the grader of %r failed on %d of %d completions, scored zero; first: %r",
      name,
      len(errors),
      len(rows),
      errors[0],
    )
  scores = [0.0 if isinstance(row, Exception) else row for row in rows]
  return np.array(scores, np.float32), len(errors)


def _grade_one(term, completion, answer):
  try:
    return float(term.reward([completion], [answer])[0])
  except Exception as error:  # counted by the caller
    return error
