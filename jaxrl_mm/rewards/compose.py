"""A reward is a weighted sum of named terms."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Reward = Callable[[Sequence[str], Sequence[str]], np.ndarray]


class Term(NamedTuple):
  """One part of a reward.

  Attributes:
    reward: `(completions, answers) -> [B]` float32.
    weight: its factor in the sum.
    verifiable: decided by a rule, not by a learned score.
  """

  reward: Reward
  weight: float = 1.0
  verifiable: bool = True


class Scores(NamedTuple):
  """Rewards of B completions: the sum, its verifiable part, each raw term."""

  total: np.ndarray
  verifiable: np.ndarray
  terms: dict[str, np.ndarray]


def score(
  terms: Mapping[str, Term],
  completions: Sequence[str],
  answers: Sequence[str],
) -> Scores:
  """Scores each completion by every term; all results are float32 [B]."""
  raw = {name: t.reward(completions, answers) for name, t in terms.items()}
  zero = np.zeros(len(completions), np.float32)
  total = sum((t.weight * raw[n] for n, t in terms.items()), zero)
  ruled = sum(
    (t.weight * raw[n] for n, t in terms.items() if t.verifiable), zero
  )
  return Scores(total, ruled, raw)
