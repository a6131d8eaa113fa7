"""Transforms of the rewards, and the step from rewards to advantages."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxrl_mm import masked
from jaxrl_mm.losses import kl
from jaxrl_mm.structs import Number, Trajectories


def clip_rewards(low: Number, high: Number) -> optax.GradientTransformation:
  """Clips each row's reward to [low, high]."""
  return optax.stateless(
    lambda t, _: t._replace(rewards=jnp.clip(t.rewards, low, high))
  )


def shape_overlong(
  max_length: int, buffer: int
) -> optax.GradientTransformation:
  """Takes up to 1 from the reward of rows that come near the limit.

  0 up to max_length - buffer tokens, then falling in a line, -1 from
  max_length on: DAPO (https://arxiv.org/abs/2503.14476, equation 13).

  Args:
    max_length: in completion tokens.
    buffer: tokens over which the penalty grows.
  """
  if not 0 < buffer <= max_length:
    raise ValueError(
      f"buffer must lie in 1..max_length = {max_length}, not {buffer}"
    )

  def update(t, _):
    spare = max_length - buffer - masked.lengths(t.mask)
    penalty = jnp.clip(spare / buffer, -1, 0)
    return t._replace(rewards=masked.widen(t.rewards) + penalty)

  return optax.stateless(update)


def advantages_from_rewards() -> optax.GradientTransformation:
  """Starts the advantages as the rewards; what follows works on them."""
  return optax.stateless(
    lambda t, _: t._replace(advantages=masked.widen(t.rewards))
  )


def penalize_kl(
  weight: Number,
  *,
  estimator: Callable[[Array, Array], Array] = kl.k1,
  per: Literal["token", "sequence"] = "token",
) -> optax.GradientTransformation:
  """A - weight * KL of the policy that drew the tokens from the reference.

  Args:
    weight: beta of the papers; 0 needs no reference.
    estimator: of `losses.kl`.
    per: "token" makes the advantages [B, T], with the KL at every token and
      what was there at the last (REINFORCE++, https://arxiv.org/abs/
      2501.03262, equation 4; PPO); "sequence" takes the sum over the tokens
      from the advantages [B] (RLOO, https://arxiv.org/abs/2402.14740).
  """

  def update(t, _):
    if per == "token":
      t = t._replace(advantages=token_rewards(t))
    if not weight:
      return t
    if t.reference_logp is None:
      raise ValueError(
        "penalize_kl needs trajectories with reference_logp, or weight 0"
      )
    cost = estimator(old_logp(t), t.reference_logp)
    cost = jnp.where(t.mask, cost, 0)
    if per == "sequence":
      cost = jnp.sum(cost, axis=-1)
    return t._replace(advantages=t.advantages - weight * cost)

  return optax.stateless(update)


def token_rewards(trajectories: Trajectories) -> Float[Array, "B T"]:
  """Advantages per token: one number a row goes to the row's last token."""
  advantages = masked.widen(trajectories.advantages)
  mask = trajectories.mask
  if advantages.ndim == 2:
    return jnp.where(mask, advantages, 0)
  columns = jnp.arange(mask.shape[1])
  last = jnp.max(jnp.where(mask, columns, -1), axis=1, keepdims=True)
  return jnp.where(columns == last, advantages[:, None], 0)


def old_logp(trajectories: Trajectories) -> Float[Array, "B T"]:
  """Log-probs under the policy that drew the tokens, the trainer's if known."""
  known = trajectories.trainer_logp
  return jnp.asarray(trajectories.logp if known is None else known)


class ShuffleState(NamedTuple):
  """The key of the next shuffle."""

  key: PRNGKeyArray


def shuffle_rewards(seed: int) -> optax.GradientTransformation:
  """Gives each row the reward of another: a control that must not learn.

  The rewards keep their distribution and lose their meaning.
  """

  def init(_):
    return ShuffleState(jax.random.key(seed))

  def update(t, state, params=None):
    del params
    key, now = jax.random.split(state.key)
    order = jax.random.permutation(now, t.rewards.shape[0])
    t = t._replace(rewards=t.rewards[order], verifiable=t.verifiable[order])
    return t, ShuffleState(key)

  return optax.GradientTransformation(init, update)
