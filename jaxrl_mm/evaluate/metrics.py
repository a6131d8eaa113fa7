"""Numbers of a benchmark from the scores of its items."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxrl_mm.evaluate.items import Verdict


class Estimate(NamedTuple):
  """A share and its confidence interval, each in [0, 1]."""

  value: float
  low: float
  high: float


def pass_at_1(scores: Float[np.ndarray, "N runs"]) -> Estimate:
  """Mean over runs and items, with a 95 % interval.

  Runs of one item are not independent, so the interval is that of the N item
  means (https://arxiv.org/abs/2411.00640, equation 4). It holds for another
  draw of items, and needs some tens of them; one item gives [0, 1].
  """
  means = scores.mean(axis=1)
  value = float(means.mean())
  if len(means) < 2:
    return Estimate(value, 0.0, 1.0)
  reach = 1.96 * float(means.std(ddof=1)) / math.sqrt(len(means))
  return Estimate(value, max(value - reach, 0.0), min(value + reach, 1.0))


def pass_at_k(scores: Float[np.ndarray, "N runs"], k: int) -> float:
  """Chance that one of k runs is right, unbiased from n >= k runs.

  1 - C(n - c, k) / C(n, k) for c right ones of n, meaned over items
  (https://arxiv.org/abs/2107.03374, equation 1). With n = k it is the any@K
  of R1-Reward. Only a score of 1 is right.
  """
  n = scores.shape[1]
  right = (scores >= 1).sum(axis=1)
  missed = [math.comb(n - c, k) / math.comb(n, k) for c in right.tolist()]
  return 1 - sum(missed) / len(missed)


def vote(verdicts: Sequence[Verdict]) -> Verdict:
  """What most of the runs of one item picked: maj@k, or voting@K of a judge.

  Runs without a pick do not vote. Tied picks share: the score is their mean,
  which is what drawing one of them would give on average, and the pick is the
  one that came first. Nothing picked scores 0.
  """
  counts = Counter(v.pick for v in verdicts if v.pick is not None)
  if not counts:
    return Verdict(0.0, None)
  most = max(counts.values())
  tied = [pick for pick, count in counts.items() if count == most]
  # Equal picks may differ in score where picks are coarser than grades.
  of_pick = [[v.score for v in verdicts if v.pick == pick] for pick in tied]
  return Verdict(float(np.mean([np.mean(s) for s in of_pick])), tied[0])


def by_category(
  categories: Sequence[str], scores: Sequence[float]
) -> dict[str, float]:
  """Mean score of each category, in the order they first occur."""
  groups = defaultdict(list)
  for category, score in zip(categories, scores):
    groups[category].append(score)
  return {category: float(np.mean(group)) for category, group in groups.items()}


def all_right(groups: Sequence[str], scores: Sequence[float]) -> float:
  """Share of groups whose every item is right."""
  right = defaultdict(lambda: True)
  for group, score in zip(groups, scores):
    right[group] &= score >= 1
  return sum(right.values()) / len(right)


def agreement(left: Sequence[bool], right: Sequence[bool]) -> dict[str, float]:
  """How far two graders agree: the share, and Cohen's kappa beyond chance.

  Kappa is 1 where both say the same of everything.
  """
  left, right = np.asarray(left, bool), np.asarray(right, bool)
  share = float((left == right).mean())
  p, q = left.mean(), right.mean()
  chance = float(p * q + (1 - p) * (1 - q))
  kappa = 1.0 if share == 1 else (share - chance) / (1 - chance)
  return {"agreement": share, "kappa": kappa}


def yes_no(
  truths: Sequence[str], picks: Sequence[str | None]
) -> dict[str, float]:
  """Accuracy, precision, recall and F1 of "yes", and the share of "yes".

  As POPE reports (https://arxiv.org/abs/2305.10355); a response without a
  pick is wrong and not a "yes". What has no denominator is 0.
  """
  said = np.array([pick == "yes" for pick in picks])
  true = np.array([truth == "yes" for truth in truths])
  hits = float((said & true).sum())
  right = [p == t for p, t in zip(picks, truths)]
  return {
    "accuracy": float(np.mean(right)),
    "precision": hits / max(said.sum(), 1),
    "recall": hits / max(true.sum(), 1),
    "f1": 2 * hits / max(said.sum() + true.sum(), 1),
    "yes": float(said.mean()),
  }
