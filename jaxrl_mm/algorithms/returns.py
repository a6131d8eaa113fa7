"""Transforms from rewards per token to advantages per token.

Advantages of shape [B] are taken as the reward of the row's last token.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxrl_mm import masked
from jaxrl_mm.algorithms.shaping import token_rewards
from jaxrl_mm.structs import Number


def discounted_returns(*, gamma: Number = 1.0) -> optax.GradientTransformation:
  """A_t <- sum over k >= t of gamma^(k - t) A_k, within the row's tokens.

  REINFORCE++ (https://arxiv.org/abs/2501.03262, equation 4) with gamma 1.
  """

  def update(t, _):
    returns = discount(token_rewards(t), gamma)
    return t._replace(advantages=jnp.where(t.mask, returns, 0))

  return optax.stateless(update)


def gae(
  *, gamma: Number = 1.0, decay: Number = 0.95
) -> optax.GradientTransformation:
  """Generalised advantage estimation, from `values`; fills `returns` too.

  A_t = d_t + gamma decay A_{t+1}, d_t = r_t + gamma V_{t+1} - V_t, and
  returns A + V (https://arxiv.org/abs/1506.02438, equation 16). A value
  beyond the last token, or under the mask, is zero.

  Args:
    gamma: discount.
    decay: lambda of the paper.
  """

  def update(t, _):
    if t.values is None:
      raise ValueError("gae needs trajectories with the values of a critic")
    values = jnp.where(t.mask, masked.widen(t.values), 0)
    after = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    surprise = token_rewards(t) + gamma * after - values
    advantages = discount(surprise, gamma * decay)
    return t._replace(
      advantages=jnp.where(t.mask, advantages, 0),
      returns=jnp.where(t.mask, advantages + values, 0),
    )

  return optax.stateless(update)


def discount(x: Float[Array, "B T"], factor: Number) -> Float[Array, "B T"]:
  """y_t = x_t + factor y_{t+1}, from the last column backwards."""

  def step(later, now):
    total = now + factor * later
    return total, total

  columns = jnp.swapaxes(x, 0, 1)
  _, sums = jax.lax.scan(
    step, jnp.zeros_like(columns[0]), columns, reverse=True
  )
  return jnp.swapaxes(sums, 0, 1)
