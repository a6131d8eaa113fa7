"""Transforms that compare a row with the whole global batch.

Statistics are over all devices, since arrays are global under jit.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxrl_mm import masked
from jaxrl_mm.structs import Number, Trajectories

Weigh = Literal["token", "sequence"]


class BatchStats(NamedTuple):
  """Of all advantages of a batch.

  Attributes:
    mean, variance: weighted; the divisor of the variance is the weight.
    varies: whether any two of them differ.
    counted: [B] or [B, T] like the advantages, where they have a weight.
  """

  mean: Float[Array, ""]
  variance: Float[Array, ""]
  varies: Bool[Array, ""]
  counted: Bool[Array, "B ..."]


def batch_stats(trajectories: Trajectories, weigh: Weigh) -> BatchStats:
  """Mean and variance of the advantages over the batch.

  Args:
    trajectories: with advantages [B] or [B, T].
    weigh: "token" counts every token once, so that long rows weigh more;
      "sequence" counts every row once.
  """
  x = masked.widen(trajectories.advantages)
  weight = trajectories.mask.astype(x.dtype)
  if weigh == "sequence":
    weight /= jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1)
  if x.ndim == 1:
    weight = jnp.sum(weight, axis=1)
  counted = weight > 0
  size = jnp.maximum(jnp.sum(weight), jnp.finfo(x.dtype).tiny)
  mean = jnp.sum(jnp.where(counted, x * weight, 0)) / size
  highest = jnp.max(jnp.where(counted, x, -jnp.inf))
  lowest = jnp.min(jnp.where(counted, x, jnp.inf))
  # Rounding can push the mean of equal floats away from all of them.
  mean = jnp.clip(mean, lowest, highest)
  square = jnp.where(counted, jnp.square(x - mean) * weight, 0)
  return BatchStats(mean, jnp.sum(square) / size, highest > lowest, counted)


def center_by_batch(
  *, weigh: Weigh = "sequence"
) -> optax.GradientTransformation:
  """A - mean of the batch: the plainest baseline; zero where all are equal."""

  def update(t, _):
    stats = batch_stats(t, weigh)
    centered = masked.widen(t.advantages) - stats.mean
    kept = jnp.where(stats.counted, centered, 0)
    return t._replace(advantages=kept)

  return optax.stateless(update)


def scale_by_batch_std(
  *, weigh: Weigh = "sequence", eps: Number = 1e-4
) -> optax.GradientTransformation:
  """A / (std of the batch + eps).

  Before `center_by_group` it divides by the std of the raw rewards, as in
  Lite PPO (https://arxiv.org/abs/2508.08221).
  """

  def update(t, _):
    std = jnp.sqrt(batch_stats(t, weigh).variance)
    return t._replace(advantages=masked.widen(t.advantages) / (std + eps))

  return optax.stateless(update)


def whiten(
  *, weigh: Weigh = "token", eps: Number = 1e-8
) -> optax.GradientTransformation:
  """(A - mean) / (std + eps) over the batch; zero where all are equal.

  REINFORCE++ (https://arxiv.org/abs/2501.03262, equation 5).

  Args:
    weigh: see `batch_stats`.
    eps: added to the standard deviation.
  """

  def update(t, _):
    return t._replace(advantages=_whitened(t, batch_stats(t, weigh), eps))

  return optax.stateless(update)


def filter_by_sigma(
  threshold: Number = 3.0,
  *,
  bounds: Literal["paper", "released"] = "paper",
  weigh: Weigh = "token",
  eps: Number = 1e-8,
) -> optax.GradientTransformation:
  """Whitens, then sets to zero what lies beyond the threshold.

  StableReinforce (https://arxiv.org/abs/2505.02835, section 4.1). A row that
  was filtered stays in the batch and in its averages.

  Args:
    threshold: in standard deviations.
    bounds: "paper" keeps |z| <= threshold with z = (A - mean) / (std + eps);
      "released", the code's, keeps z within the threshold of the *raw* mean
      and within 10 of zero, with z = (A - mean) / sqrt(max(var, 1e-8)) + 1e-8.
    weigh: see `batch_stats`.
    eps: added to the standard deviation, in the paper's reading.
  """

  def paper(t, stats):
    z = _whitened(t, stats, eps)
    return jnp.where(jnp.abs(z) <= threshold, z, 0)

  def released(t, stats):
    scale = jax.lax.rsqrt(jnp.maximum(stats.variance, 1e-8))
    z = (masked.widen(t.advantages) - stats.mean) * scale + 1e-8
    near = jnp.abs(z - stats.mean) <= threshold
    return jnp.where(near & (jnp.abs(z) <= 10) & stats.counted, z, 0)

  keep = {"paper": paper, "released": released}[bounds]
  return optax.stateless(
    lambda t, _: t._replace(advantages=keep(t, batch_stats(t, weigh)))
  )


def clip_advantages(limit: Number) -> optax.GradientTransformation:
  """Clips A to [-limit, limit]."""
  return optax.stateless(
    lambda t, _: t._replace(advantages=jnp.clip(t.advantages, -limit, limit))
  )


def _whitened(t: Trajectories, stats: BatchStats, eps: Number) -> Array:
  z = (masked.widen(t.advantages) - stats.mean) / (
    jnp.sqrt(stats.variance) + eps
  )
  return jnp.where(stats.varies & stats.counted, z, 0)
