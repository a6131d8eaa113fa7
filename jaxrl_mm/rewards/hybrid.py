"""The hybrid reward of Skywork R1V2."""

from typing import Literal

import numpy as np

from jaxrl_mm.rewards import format as form
from jaxrl_mm.rewards import math as maths
from jaxrl_mm.rewards.compose import Reward, Term
from jaxrl_mm.structs import Number


def terms(
  learned: Reward,
  *,
  rule: Reward = maths.exact,
  layout: Reward = form.r1,
  **scaling,
) -> dict[str, Term]:
  """r_rule + r_theta + r_format, each with weight 1.

  Equation 7 of https://arxiv.org/abs/2504.16656, which leaves open on which
  scale the learned score r_theta is; raw scores of a reward model, -15 to 8,
  swamp the other two.

  Args:
    learned: raw scores of a reward model.
    rule: 1 for a right answer, else 0.
    layout: 1 for a kept format, else 0.
    **scaling: of `rescale`; none adds the raw score, as the paper writes it.
  """

  def scaled(completions, answers):
    return rescale(learned(completions, answers), **scaling)

  return {
    "rule": Term(rule),
    "learned": Term(scaled, verifiable=False),
    "format": Term(layout),
  }


def rescale(
  scores: np.ndarray,
  *,
  normalize: tuple[Number, Number] | Literal["batch"] | None = None,
  clip: tuple[Number, Number] | None = None,
  threshold: Number | None = None,
) -> np.ndarray:
  """Learned scores on a scale that goes with rewards of 0 and 1.

  Args:
    scores: [B] of a reward model.
    normalize: (mean, std) to subtract and divide by, as measured on held-out
      answers; "batch" takes those of the scores. First of the three steps.
    clip: (low, high), second.
    threshold: 1 where the score reaches it, else 0; last. Equal scores then
      mean equal rewards again.
  """
  scores = np.asarray(scores, np.float32)
  if normalize is not None:
    batch = scores.mean(), scores.std() + 1e-6
    mean, std = batch if normalize == "batch" else normalize
    scores = (scores - mean) / std
  if clip is not None:
    scores = np.clip(scores, *clip)
  if threshold is not None:
    scores = scores >= threshold
  return scores.astype(np.float32)
