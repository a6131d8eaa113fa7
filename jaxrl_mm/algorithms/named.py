"""The algorithms people know: each one chain and one loss."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxrl_mm import losses
from jaxrl_mm.algorithms import batch, groups, returns, shaping
from jaxrl_mm.algorithms.replay import selective_sample_buffer
from jaxrl_mm.losses.policy import Aggregate
from jaxrl_mm.structs import Metrics, Number, Trajectories

Loss = Callable[[Array, Trajectories], tuple[Float[Array, ""], Metrics]]


def by_rows(trajectories: Trajectories) -> Float[Array, ""]:
  """Number of rows with tokens: the weight of a mean over rows."""
  return jnp.sum(groups.present_rows(trajectories), dtype=jnp.float32)


def by_tokens(trajectories: Trajectories) -> Float[Array, ""]:
  """Number of tokens: the weight of a mean over tokens."""
  return jnp.sum(trajectories.mask, dtype=jnp.float32)


class Algorithm(NamedTuple):
  """What turns rewards into a gradient.

  Attributes:
    transform: an `optax.GradientTransformation` over `Trajectories` that
      fills in `advantages`.
    loss: `(logp [B, T], trajectories) -> (loss, metrics)`, differentiated
      with respect to logp.
    weight: of a micro-batch's loss among the others, so that their weighted
      mean is the loss of the whole batch.
    value_loss: `(values [B, T], trajectories) -> (loss, metrics)`, to add to
      the loss of an algorithm with a critic; None without one.
  """

  transform: optax.GradientTransformation
  loss: Loss
  weight: Callable[[Trajectories], Float[Array, ""]] = by_rows
  value_loss: Loss | None = None


def grpo(
  *, clip: Number = 0.2, kl_weight: Number = 0.0, eps: Number = 1e-4
) -> Algorithm:
  """GRPO (https://arxiv.org/abs/2402.03300, equation 3).

  Args:
    clip: of the ratio, both ways.
    kl_weight: of the k3 penalty against `reference_logp`; the paper's 0.04
      needs a reference policy, 0 needs none.
    eps: added to the group's standard deviation.
  """
  loss = _clipped(clip_low=clip, clip_high=clip)
  loss = _with_kl(loss, losses.kl.k3, kl_weight)
  return Algorithm(_group_scaled(eps), loss)


def dr_grpo(*, max_length: int, clip: Number = 0.2) -> Algorithm:
  """Dr.GRPO (https://arxiv.org/abs/2503.20783, section 3.2): no division by
  the group's deviation, none by the row's length.

  Args:
    max_length: constant divisor of each row's sum, in tokens.
    clip: of the ratio, both ways.
  """
  transform = optax.chain(
    shaping.advantages_from_rewards(), groups.center_by_group()
  )
  loss = _clipped(clip_low=clip, clip_high=clip, aggregate=max_length)
  return Algorithm(transform, loss)


def dapo(
  *,
  clip_low: Number = 0.2,
  clip_high: Number = 0.28,
  max_length: int = 20480,
  overlong_buffer: int = 4096,
  eps: Number = 1e-4,
) -> Algorithm:
  """DAPO (https://arxiv.org/abs/2503.14476, equations 8 to 13).

  Args:
    clip_low, clip_high: of the ratio; higher above, to keep exploring.
    max_length, overlong_buffer: see `shape_overlong`; in tokens.
    eps: added to the group's standard deviation.
  """
  transform = optax.chain(
    shaping.shape_overlong(max_length, overlong_buffer),
    _group_scaled(eps),
    groups.mask_uniform_groups(),
  )
  loss = _clipped(clip_low=clip_low, clip_high=clip_high, aggregate="token")
  return Algorithm(transform, loss, by_tokens)


def gspo(
  *, clip_low: Number = 3e-4, clip_high: Number = 4e-4, eps: Number = 1e-4
) -> Algorithm:
  """GSPO (https://arxiv.org/abs/2507.18071, equation 5): one ratio a row.

  Args:
    clip_low, clip_high: of the row's ratio.
    eps: added to the group's standard deviation.
  """

  def loss(logp, t):
    return losses.policy.gspo(
      logp,
      shaping.old_logp(t),
      t.advantages,
      t.mask,
      clip_low=clip_low,
      clip_high=clip_high,
      weights=_sampler_weights(t),
    )

  return Algorithm(_group_scaled(eps), loss)


def cispo(*, clip_high: Number = 4.0, eps: Number = 1e-4) -> Algorithm:
  """CISPO (https://arxiv.org/abs/2506.13585, equation 4): the weight is
  clipped, every token keeps its gradient.

  Args:
    clip_high: the weight is at most 1 + clip_high.
    eps: added to the group's standard deviation.
  """

  def loss(logp, t):
    return losses.policy.cispo(
      logp,
      shaping.old_logp(t),
      t.advantages,
      t.mask,
      clip_high=clip_high,
      weights=_sampler_weights(t),
    )

  return Algorithm(_group_scaled(eps), loss, by_tokens)


def rloo(*, kl_weight: Number = 0.0) -> Algorithm:
  """RLOO (https://arxiv.org/abs/2402.14740): REINFORCE on whole
  rows, the baseline of each is the mean of its group's others.

  Args:
    kl_weight: of the KL in the reward; above 0 needs `reference_logp`.
  """
  transform = optax.chain(
    shaping.advantages_from_rewards(),
    shaping.penalize_kl(kl_weight, per="sequence"),
    groups.leave_one_out(),
  )
  return Algorithm(transform, _reinforce(aggregate=1))


def reinforce() -> Algorithm:
  """REINFORCE (https://doi.org/10.1007/BF00992696) on whole rows, the batch's
  mean reward as the baseline."""
  transform = optax.chain(
    shaping.advantages_from_rewards(), batch.center_by_batch()
  )
  return Algorithm(transform, _reinforce(aggregate=1))


def reinforce_plus_plus(
  *, clip: Number = 0.2, kl_weight: Number = 0.0, gamma: Number = 1.0
) -> Algorithm:
  """REINFORCE++ (https://arxiv.org/abs/2501.03262, equations 4 and 5): KL in
  the reward of each token, returns whitened over the global batch.

  Args:
    clip: of the ratio, both ways.
    kl_weight: above 0 needs `reference_logp`.
    gamma: discount.
  """
  transform = optax.chain(_token_returns(kl_weight, gamma), batch.whiten())
  return Algorithm(transform, _clipped(clip_low=clip, clip_high=clip))


def reinforce_plus_plus_baseline(
  *, clip: Number = 0.2, kl_weight: Number = 0.0
) -> Algorithm:
  """REINFORCE++ with baseline (https://arxiv.org/abs/2501.03262, equations 6
  to 8): centred by group, whitened over the batch, a k2 penalty beside.

  Args:
    clip: of the ratio, both ways.
    kl_weight: above 0 needs `reference_logp`.
  """
  transform = optax.chain(
    shaping.advantages_from_rewards(), groups.center_by_group(), batch.whiten()
  )
  loss = _clipped(clip_low=clip, clip_high=clip)
  return Algorithm(transform, _with_kl(loss, losses.kl.k2, kl_weight))


def ppo(
  *,
  clip: Number = 0.2,
  kl_weight: Number = 0.0,
  gamma: Number = 1.0,
  decay: Number = 0.95,
  value_clip: Number | None = 0.2,
) -> Algorithm:
  """PPO (https://arxiv.org/abs/1707.06347): needs the `values` of a critic.

  Args:
    clip: of the ratio, both ways.
    kl_weight: of the KL in the reward; above 0 needs `reference_logp`.
    gamma, decay: of `gae`.
    value_clip: of the critic's loss; None leaves it unclipped.
  """

  def value_loss(values, t):
    return losses.value.clipped(
      values, t.values, t.returns, t.mask, clip=value_clip
    )

  transform = optax.chain(
    shaping.advantages_from_rewards(),
    shaping.penalize_kl(kl_weight),
    returns.gae(gamma=gamma, decay=decay),
    batch.whiten(),
  )
  loss = _clipped(clip_low=clip, clip_high=clip)
  return Algorithm(transform, loss, value_loss=value_loss)


def stable_reinforce(
  *,
  clip: Number = 0.2,
  ratio_bounds: tuple[float, float] = (1e-3, 1e3),
  threshold: Number = 3.0,
  bounds: Literal["paper", "released"] = "paper",
  kl_weight: Number = 0.0,
) -> Algorithm:
  """StableReinforce (https://arxiv.org/abs/2505.02835, section 4.1).

  REINFORCE++ with Pre-CLIP and the 3-sigma filter. The paper has no KL, its
  released code 1e-3.

  Args:
    clip: of the ratio, both ways.
    ratio_bounds: of Pre-CLIP, on the ratio before that clip.
    threshold, bounds: see `filter_by_sigma`; "released" is the code's filter.
    kl_weight: of the KL in the reward; above 0 needs `reference_logp`, and
      gives advantages [B, T], in which a buffer needs `per_token`.
  """
  low, high = ratio_bounds
  loss = _clipped(
    clip_low=clip,
    clip_high=clip,
    log_ratio_bounds=(math.log(low), math.log(high)),
  )
  transform = optax.chain(
    _token_returns(kl_weight, 1.0),
    batch.filter_by_sigma(threshold, bounds=bounds),
  )
  return Algorithm(transform, loss)


def r1v2(
  *,
  capacity: int,
  priority_exponent: Number = 1.0,
  max_age: int | None = None,
  seed: int = 0,
  **grpo_settings,
) -> Algorithm:
  """Skywork R1V2: GRPO with the Selective Sample Buffer
  (https://arxiv.org/abs/2504.16656, sections 3.2 and 3.3).

  Its hybrid reward is `rewards.hybrid`; what of it is learned decides nothing
  about which rows the buffer replaces.

  Args:
    capacity, priority_exponent, max_age, seed: of the buffer, see
      `selective_sample_buffer`.
    **grpo_settings: of `grpo`.
  """
  base = grpo(**grpo_settings)
  buffer = selective_sample_buffer(
    capacity, priority_exponent=priority_exponent, max_age=max_age, seed=seed
  )
  return base._replace(transform=optax.chain(base.transform, buffer))


def _group_scaled(eps: Number) -> optax.GradientTransformation:
  """The advantages of GRPO."""
  return optax.chain(
    shaping.advantages_from_rewards(),
    groups.center_by_group(),
    groups.scale_by_group_std(eps=eps),
  )


def _token_returns(
  kl_weight: Number, gamma: Number
) -> optax.GradientTransformation:
  """Returns of REINFORCE++; [B] where all tokens of a row have the same."""
  start = shaping.advantages_from_rewards()
  if not kl_weight and gamma == 1:
    return start
  return optax.chain(
    start,
    shaping.penalize_kl(kl_weight),
    returns.discounted_returns(gamma=gamma),
  )


def _sampler_weights(t: Trajectories) -> Float[Array, "B T"] | None:
  """Weights for the sampler's log-probs, where the trainer's differ."""
  if t.trainer_logp is None:
    return None
  return losses.policy.truncated_importance(t.trainer_logp, t.logp, t.mask)


def _clipped(*, aggregate: Aggregate = "sequence", **settings) -> Loss:
  def loss(logp, t):
    return losses.policy.clipped_surrogate(
      logp,
      shaping.old_logp(t),
      t.advantages,
      t.mask,
      weights=_sampler_weights(t),
      aggregate=aggregate,
      **settings,
    )

  return loss


def _reinforce(*, aggregate: Aggregate) -> Loss:
  def loss(logp, t):
    value = losses.policy.reinforce(
      logp,
      t.advantages,
      t.mask,
      weights=_sampler_weights(t),
      aggregate=aggregate,
    )
    return value, {}

  return loss


def _with_kl(
  loss: Loss, estimator: Callable[[Array, Array], Array], weight: Number
) -> Loss:
  """Adds `weight` times the mean KL from the reference; nothing for 0."""
  if not weight:
    return loss

  def with_kl(logp, t):
    value, metrics = loss(logp, t)
    # Padding can hold anything, and must not reach the gradient.
    logp = jnp.where(t.mask, logp, 0)
    reference = jnp.where(t.mask, t.reference_logp, 0)
    penalty = losses.policy.aggregate_tokens(
      estimator(logp, reference), t.mask, "sequence"
    )
    return value + weight * penalty, metrics | {"kl": penalty}

  return with_kl
