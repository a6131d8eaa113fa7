"""Small steps from rewards to advantages.

Each is an `optax.GradientTransformation` whose updates are `Trajectories`:
`init(trajectories) -> state`, `update(trajectories, state) -> (trajectories,
state)`. `optax.chain` joins them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxrl_mm.structs import Trajectories


class GroupStats(NamedTuple):
  """Of the group each row belongs to, all [B]."""

  mean: Float[Array, " B"]
  std: Float[Array, " B"]
  varies: Bool[Array, " B"]


def group_stats(
  x: Float[Array, " B"],
  group: Int[Array, " B"],
  present: Bool[Array, " B"],
  *,
  ddof: int = 0,
) -> GroupStats:
  """Mean, standard deviation and whether the values differ, per group.

  Rows of a group may lie anywhere. Rows that are not present count nowhere.

  Args:
    x: [B] values.
    group: [B] group numbers, any integers.
    present: [B] rows to count.
    ddof: 1 divides the variance by n - 1; a single row has std 0.
  """
  rows = group.shape[0]
  _, segment = jnp.unique(group, return_inverse=True, size=rows)
  add = lambda y: jax.ops.segment_sum(jnp.where(present, y, 0), segment, rows)
  count = add(jnp.ones_like(x))
  mean = (add(x) / jnp.maximum(count, 1))[segment]
  square = add(jnp.square(x - mean))
  std = jnp.sqrt(square / jnp.maximum(count - ddof, 1))[segment]
  # Compared, not subtracted: the mean of equal floats may differ from them.
  highest = jax.ops.segment_max(jnp.where(present, x, -jnp.inf), segment, rows)[
    segment
  ]
  lowest = jax.ops.segment_min(jnp.where(present, x, jnp.inf), segment, rows)[
    segment
  ]
  return GroupStats(mean, std, highest > lowest)


def present_rows(trajectories: Trajectories) -> Bool[Array, " B"]:
  """Rows that hold at least one token; the others are padding."""
  return jnp.any(trajectories.mask, axis=-1)


def advantages_from_rewards() -> optax.GradientTransformation:
  """Starts the advantages as the rewards."""
  return optax.stateless(lambda t, _: t._replace(advantages=t.rewards))


def center_by_group() -> optax.GradientTransformation:
  """A_i - mean of its group: exactly zero where a group's values are equal."""

  def update(t, _):
    stats = group_stats(t.advantages, t.group, present_rows(t))
    centered = jnp.where(stats.varies, t.advantages - stats.mean, 0)
    return t._replace(advantages=centered)

  return optax.stateless(update)


def scale_by_group_std(
  *, eps: float = 1e-4, ddof: int = 1
) -> optax.GradientTransformation:
  """A_i / (std of its group + eps).

  GRPO (https://arxiv.org/abs/2402.03300, section 4.1.2). The paper leaves the
  divisor open; ddof 1 and eps 1e-4 are what TRL's GRPO uses.
  """

  def update(t, _):
    stats = group_stats(t.advantages, t.group, present_rows(t), ddof=ddof)
    return t._replace(advantages=t.advantages / (stats.std + eps))

  return optax.stateless(update)


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
