"""Losses of a scalar reward model."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxrl_mm import masked
from jaxrl_mm.structs import Metrics


def bradley_terry(
  chosen: Float[ArrayLike, " B"],
  rejected: Float[ArrayLike, " B"],
  *,
  margin: ArrayLike = 0.0,
) -> Float[Array, " B"]:
  """-log sigmoid(chosen - rejected - margin), per pair in nats.

  Skywork-VL Reward (https://arxiv.org/abs/2505.07263, equation 1) without a
  margin; Llama 2 (https://arxiv.org/abs/2307.09288, equation 2) with one.

  Args:
    chosen, rejected: [B] scores; only their difference matters.
    margin: one for all, or [B]: how far apart the scores should be.
  """
  gap = masked.widen(chosen) - masked.widen(rejected)
  return -jax.nn.log_sigmoid(gap - margin)


def mean_without_ties(
  chosen: Float[ArrayLike, " B"],
  rejected: Float[ArrayLike, " B"],
  tie: ArrayLike,
  *,
  margin: ArrayLike = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
  """Mean of `bradley_terry` over the pairs that are not ties.

  Args:
    chosen, rejected: [B] scores.
    tie: [B] true where nobody could tell which is better; such a pair, or one
      that pads the batch, counts nowhere. A batch of ties gives zero.
    margin: see `bradley_terry`.

  Returns:
    The loss, and metrics over the same pairs: `accuracy`, the share where
    chosen scores higher; `score_gap`, the mean difference.
  """
  decided = ~jnp.asarray(tie, bool)
  # Whatever a tied pair holds must not reach the gradient.
  gap = jnp.where(decided, masked.widen(chosen) - masked.widen(rejected), 0)
  loss = bradley_terry(gap, jnp.zeros_like(gap), margin=margin)
  metrics = {
    "accuracy": masked.mean((gap > 0) * 1.0, decided),
    "score_gap": masked.mean(gap, decided),
  }
  return masked.mean(loss, decided), metrics
