"""The reward of R1-Reward, for training a judge of two responses."""

from typing import Literal

import numpy as np

from jaxrl_mm.rewards import choice, consistency
from jaxrl_mm.rewards import format as form
from jaxrl_mm.rewards.compose import Reward, Term
from jaxrl_mm.rewards.judge import Judge

Reading = Literal["paper", "released"]


def combine(
  result: np.ndarray,
  verdict: np.ndarray,
  layout: np.ndarray,
  *,
  reading: Reading = "paper",
) -> np.ndarray:
  """Result (1 + 0.5 Consistency) + 0.5 Format.

  https://arxiv.org/abs/2505.02835, section 4.2.

  Args:
    result: [B] 1 where the right response was preferred, else 0.
    verdict: [B] 1, 0 or -1 of `consistency.verdicts`.
    layout: [B] 1 where the format was kept, else 0.
    reading: "paper" has a consistency of 1 or 0; "released", the code's, of 1,
      0 or -1, so that an answer against its own reasoning costs.
  """
  return result * (1 + 0.5 * _value(verdict, reading)) + 0.5 * layout


def terms(
  judge: Judge,
  *,
  reading: Reading = "paper",
  result: Reward = choice.pairwise,
  layout: Reward = form.r1,
  attempts: int = 3,
) -> dict[str, Term]:
  """The same as terms whose weighted sum is `combine`.

  The judge is asked about right answers only, as nothing else depends on it.

  Args:
    judge: of consistency.
    reading: see `combine`.
    result: 1 for a right answer, else 0.
    layout: 1 for a kept format, else 0.
    attempts: see `consistency.verdicts`.
  """

  def consistent(completions, answers):
    right = np.flatnonzero(result(completions, answers))
    texts = [completions[i] for i in right]
    values = np.zeros(len(completions), np.float32)
    verdict = consistency.verdicts(texts, judge, attempts=attempts)
    values[right] = _value(verdict, reading)
    return values

  return {
    "result": Term(result),
    "consistency": Term(consistent, 0.5, verifiable=False),
    "format": Term(layout, 0.5),
  }


def _value(verdict: np.ndarray, reading: Reading) -> np.ndarray:
  return np.maximum(verdict, 0) if reading == "paper" else np.asarray(verdict)
