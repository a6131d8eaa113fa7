"""A threshold that follows a rate.

Skywork R1V2 (https://arxiv.org/abs/2504.16656) calibrates its reward
thresholds against hallucination and does not say how. This is the simplest
controller that can: a step up while the rate is above its band, a step down
while it is below.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxrl_mm.structs import Number


@dataclasses.dataclass(frozen=True)
class Band:
  """Where a rate should stay, and how the threshold moves when it does not.

  Attributes:
    low, high: of the rate.
    step: by which the threshold moves while the rate is outside.
    lowest, highest: of the threshold.
    decay: of the average of the rates; 0 follows each one.
  """

  low: float = 0.05
  high: float = 0.1
  step: float = 0.1
  lowest: float = 0.0
  highest: float = 10.0
  decay: float = 0.9


class BandState(NamedTuple):
  """The threshold in use, the smoothed rate, and how many rates came."""

  threshold: Float[Array, ""]
  rate: Float[Array, ""]
  count: Int[Array, ""]


def hold_in_band(
  start: Number, band: Band | None
) -> optax.GradientTransformation:
  """`update(rate, state) -> (threshold, state)`; a higher threshold is taken
  to lower the rate, for less is rewarded.

  Args:
    start: the threshold at first.
    band: of the rate; None leaves the threshold where it is.
  """

  def init(params):
    del params
    threshold, rate = jnp.float32(start), jnp.float32(0)
    return BandState(threshold, rate, jnp.zeros((), jnp.int32))

  def update(rate, state, params=None):
    del params
    if band is None:
      return state.threshold, state
    count = state.count + 1
    average = band.decay * state.rate + (1 - band.decay) * jnp.float32(rate)
    # Without its start at zero the average would take long to say anything.
    unbiased = average / (1 - jnp.float32(band.decay) ** count)
    up, down = unbiased > band.high, unbiased < band.low
    move = band.step * (up.astype(jnp.float32) - down)
    threshold = jnp.clip(state.threshold + move, band.lowest, band.highest)
    return threshold, BandState(threshold, average, count)

  return optax.GradientTransformation(init, update)
