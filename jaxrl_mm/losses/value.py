"""Losses of a critic."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxrl_mm import masked
from jaxrl_mm.losses.policy import Aggregate, aggregate_tokens
from jaxrl_mm.structs import Metrics


def clipped(
  values: Float[ArrayLike, "B T"],
  old_values: Float[ArrayLike, "B T"],
  returns: Float[ArrayLike, "B T"],
  mask: ArrayLike,
  *,
  clip: ArrayLike | None = 0.2,
  aggregate: Aggregate = "sequence",
) -> tuple[Float[Array, ""], Metrics]:
  """max((V - R)^2, (old + clip(V - old, -clip, clip) - R)^2) / 2.

  The value loss of PPO as its authors' code has it
  (https://arxiv.org/abs/1707.06347 leaves the clipping out: `clip=None`).

  Args:
    values: [B, T] what the critic says now.
    old_values: [B, T] what it said when the returns were computed.
    returns: [B, T] what it should have said.
    mask: [B, T] true where a token counts.
    clip: how far a value may move before its loss stops falling.
    aggregate: see `policy.aggregate_tokens`.

  Returns:
    The loss, and metrics: `value_clip_fraction`, share of tokens where the
    clipped error is the larger; `value_error`, mean |V - R|.
  """
  mask = jnp.asarray(mask, bool)
  values, old, target = (
    jnp.where(mask, masked.widen(x), 0) for x in (values, old_values, returns)
  )
  error = jnp.square(values - target)
  plain = error
  if clip is not None:
    near = old + jnp.clip(values - old, -clip, clip)
    error = jnp.maximum(plain, jnp.square(near - target))
  metrics = {
    "value_clip_fraction": masked.mean((error > plain) * 1.0, mask),
    "value_error": masked.mean(jnp.abs(values - target), mask),
  }
  return 0.5 * aggregate_tokens(error, mask, aggregate), metrics
