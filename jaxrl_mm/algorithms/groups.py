"""Transforms that compare a row with the others of its prompt.

They take advantages of shape [B], one number a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxrl_mm import masked
from jaxrl_mm.structs import Number, Trajectories


class GroupStats(NamedTuple):
  """Of the group each row belongs to, all [B]."""

  mean: Float[Array, " B"]
  std: Float[Array, " B"]
  varies: Bool[Array, " B"]
  size: Int[Array, " B"]


def group_stats(
  x: Shaped[ArrayLike, " B"],
  group: Int[ArrayLike, " B"],
  present: Bool[Array, " B"],
  *,
  ddof: int = 0,
) -> GroupStats:
  """Mean, standard deviation, whether the values differ, and size, per group.

  Rows of a group may lie anywhere. Rows that are not present count nowhere.

  Args:
    x: [B] values.
    group: [B] group numbers, any integers.
    present: [B] rows to count.
    ddof: 1 divides the variance by n - 1; a single row has std 0.
  """
  x, rows = masked.widen(x), x.shape[0]
  _, segment = jnp.unique(group, return_inverse=True, size=rows)
  add = lambda y: jax.ops.segment_sum(jnp.where(present, y, 0), segment, rows)
  count = add(jnp.ones(rows, jnp.int32))
  mean = (add(x) / jnp.maximum(count, 1))[segment]
  square = add(jnp.square(x - mean))
  std = jnp.sqrt(square / jnp.maximum(count - ddof, 1))[segment]
  # Compared, not subtracted: the mean of equal floats may differ from them.
  highest = jax.ops.segment_max(jnp.where(present, x, -jnp.inf), segment, rows)
  lowest = jax.ops.segment_min(jnp.where(present, x, jnp.inf), segment, rows)
  return GroupStats(mean, std, (highest > lowest)[segment], count[segment])


def present_rows(trajectories: Trajectories) -> Bool[Array, " B"]:
  """Rows that hold at least one token; the others are padding."""
  return jnp.any(trajectories.mask, axis=-1)


def center_by_group() -> optax.GradientTransformation:
  """A_i - mean of its group: exactly zero where a group's values are equal.

  Alone it is the advantage of Dr.GRPO (https://arxiv.org/abs/2503.20783).
  """

  def update(t, _):
    present = present_rows(t)
    stats = group_stats(t.advantages, t.group, present)
    centered = masked.widen(t.advantages) - stats.mean
    kept = jnp.where(stats.varies & present, centered, 0)
    return t._replace(advantages=kept)

  return optax.stateless(update)


def scale_by_group_std(
  *, eps: Number = 1e-4, ddof: int = 1
) -> optax.GradientTransformation:
  """A_i / (std of its group + eps).

  GRPO (https://arxiv.org/abs/2402.03300, section 4.1.2). The paper leaves the
  divisor open; ddof 1 and eps 1e-4 are what TRL's GRPO uses.
  """

  def update(t, _):
    stats = group_stats(t.advantages, t.group, present_rows(t), ddof=ddof)
    scaled = masked.widen(t.advantages) / (stats.std + eps)
    return t._replace(advantages=scaled)

  return optax.stateless(update)


def leave_one_out() -> optax.GradientTransformation:
  """A_i - mean of the others of its group; a row alone has zero.

  RLOO (https://arxiv.org/abs/2402.14740).
  """

  def update(t, _):
    present = present_rows(t)
    stats = group_stats(t.advantages, t.group, present)
    others = jnp.maximum(stats.size - 1, 1)
    centered = masked.widen(t.advantages) - stats.mean
    spread = centered * (stats.size / others)
    kept = jnp.where(stats.varies & present, spread, 0)
    return t._replace(advantages=kept)

  return optax.stateless(update)


def mask_uniform_groups() -> optax.GradientTransformation:
  """Masks every token of groups whose verifiable rewards are all equal.

  The static-shape half of DAPO's dynamic sampling (https://arxiv.org/abs/
  2503.14476, equation 11): such rows leave the averages of the loss. To draw
  others in their place is the caller's, or the Selective Sample Buffer's.
  """

  def update(t, _):
    stats = group_stats(t.verifiable, t.group, present_rows(t))
    return t._replace(mask=t.mask & stats.varies[:, None])

  return optax.stateless(update)
