"""A threshold that follows a rate.

Skywork R1V2 (https://arxiv.org/abs/2504.16656) calibrates its reward
thresholds against hallucination and does not say how. This is the simplest
controller that can: a step up while the rate is above its band, a step down
while it is below.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxrl_mm.structs import Number


class BandState(NamedTuple):
  """The threshold in use, the smoothed rate, and how many rates came."""

  threshold: Float[Array, ""]
  rate: Float[Array, ""]
  count: Int[Array, ""]


def hold_in_band(
  start: Number,
  *,
  low: Number,
  high: Number,
  step: Number,
  lowest: Number,
  highest: Number,
  decay: Number = 0.9,
) -> optax.GradientTransformation:
  """`update(rate, state) -> (threshold, state)`; a higher threshold rewards
  less.

  Args:
    start: the threshold at first, and what `init` gives.
    low, high: the band of the rate.
    step: by which the threshold moves while the rate is outside.
    lowest, highest: of the threshold.
    decay: of the average of the rates; 0 follows each one.
  """

  def init(params):
    del params
    threshold, rate = jnp.float32(start), jnp.float32(0)
    return BandState(threshold, rate, jnp.zeros((), jnp.int32))

  def update(rate, state, params=None):
    del params
    count = state.count + 1
    # Without its start at zero the average would take long to say anything.
    average = decay * state.rate + (1 - decay) * jnp.asarray(rate, jnp.float32)
    unbiased = average / (1 - jnp.float32(decay) ** count)
    move = jnp.where(unbiased > high, step, jnp.where(unbiased < low, -step, 0))
    threshold = jnp.clip(state.threshold + move, lowest, highest)
    return threshold, BandState(threshold, average, count)

  return optax.GradientTransformation(init, update)


def keep(threshold: Number) -> optax.GradientTransformation:
  """As `hold_in_band`, for a threshold that never moves."""
  return optax.GradientTransformation(
    lambda params: (), lambda rate, state, params=None: (threshold, state)
  )
