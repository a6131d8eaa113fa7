"""The algorithms people know: each one chain and one loss."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxrl_mm import losses
from jaxrl_mm.algorithms import transforms
from jaxrl_mm.algorithms.replay import selective_sample_buffer
from jaxrl_mm.structs import Metrics, Trajectories

Loss = Callable[[Array, Trajectories], tuple[Float[Array, ""], Metrics]]


def by_rows(trajectories: Trajectories) -> Float[Array, ""]:
  """1, whatever the rows hold."""
  del trajectories
  return jnp.ones(())


class Algorithm(NamedTuple):
  """What turns rewards into a gradient.

  Attributes:
    transform: an `optax.GradientTransformation` over `Trajectories` that
      fills in `advantages`.
    loss: `(logp [B, T], trajectories) -> (loss, metrics)`, differentiated
      with respect to logp.
    weight: of a micro-batch's loss among the others. Means over rows weigh
      alike (micro-batches have equally many); a loss that is a mean over
      tokens weighs by its tokens.
  """

  transform: optax.GradientTransformation
  loss: Loss
  weight: Callable[[Trajectories], Float[Array, ""]] = by_rows


def grpo(
  *, clip: float = 0.2, kl_weight: float = 0.0, eps: float = 1e-4
) -> Algorithm:
  """GRPO (https://arxiv.org/abs/2402.03300, equation 3).

  Args:
    clip: of the ratio, both ways.
    kl_weight: of the k3 penalty against `reference_logp`; the paper's 0.04
      needs a reference policy, 0 needs none.
    eps: added to the group's standard deviation.
  """

  def loss(logp, t):
    surrogate, metrics = losses.policy.clipped_surrogate(
      logp, t.logp, t.advantages, t.mask, clip_low=clip, clip_high=clip
    )
    if not kl_weight:
      return surrogate, metrics
    penalty = losses.kl.k3(logp, t.reference_logp)
    penalty = losses.policy.aggregate_tokens(penalty, t.mask, "sequence")
    return surrogate + kl_weight * penalty, metrics | {"kl": penalty}

  transform = optax.chain(
    transforms.advantages_from_rewards(),
    transforms.center_by_group(),
    transforms.scale_by_group_std(eps=eps),
  )
  return Algorithm(transform, loss)


def r1v2(
  *,
  capacity: int,
  priority_exponent: float = 1.0,
  max_age: int | None = None,
  seed: int = 0,
  **grpo_settings,
) -> Algorithm:
  """Skywork R1V2: GRPO with the Selective Sample Buffer
  (https://arxiv.org/abs/2504.16656, sections 3.2 and 3.3).

  Args:
    capacity, priority_exponent, max_age, seed: of the buffer, see
      `selective_sample_buffer`.
    **grpo_settings: of `grpo`.
  """
  base = grpo(**grpo_settings)
  buffer = selective_sample_buffer(
    capacity, priority_exponent=priority_exponent, max_age=max_age, seed=seed
  )
  return Algorithm(optax.chain(base.transform, buffer), base.loss)
