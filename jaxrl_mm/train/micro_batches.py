"""Which rows a device takes at once, where it counts tokens and not rows.

Rows follow each other into a micro-batch until the next one finds no room, as
the `packed` forward pass will lay them: without padding, and the prompt of
neighbours once. How many micro-batches an update has depends on its rows.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrl_mm import sharding


def starts(batch: Any, rows: int, room: int) -> Int[Array, "N length"]:
  """First row of each micro-batch, shard by shard.

  Where a shard has fewer than others its last ones are empty. So the length is
  one more than a shard has rows.

  Args:
    batch: `Demonstrations`, `Pairs`, `Trajectories`, or a tuple that has one
      of them; every leaf has the leading axis B.
    rows: of a micro-batch of one shard, at most.
    room: its tokens; a row alone must fit.
  """
  held = _rows(batch)
  every = tuple(range(1, held.mask.ndim))
  sizes = (
    jnp.sum(held.prompts.mask, axis=1),
    jnp.sum(held.mask, axis=every),
    held.prompts.group,
  )
  split = lambda x: x.reshape(sharding.batch_shards(), -1)
  return jax.vmap(partial(_of_shard, rows, room))(*map(split, sizes))


def _of_shard(rows, room, prompt, answer, group):
  repeats = group == jnp.roll(group, 1)

  def join(state, row):
    number, held, used = state
    prompt, answer, repeats = row
    more = answer + jnp.where(repeats & (held > 0), 0, prompt)
    full = (held == rows) | (used + more > room)
    number += full
    held = jnp.where(full, 1, held + 1)
    used = jnp.where(full, prompt + answer, used + more)
    return (number, held, used), number

  zero = jnp.zeros((), prompt.dtype)
  _, number = jax.lax.scan(join, (zero, zero, zero), (prompt, answer, repeats))
  return jnp.searchsorted(number, jnp.arange(len(group) + 1))


def count(first: Int[Array, "N length"]) -> Int[Array, ""]:
  """Micro-batches of the shard that has most."""
  return jnp.max(jnp.sum(first < first.shape[1] - 1, axis=1))


def take(
  batch: Any, first: Int[Array, "N length"], number: Array, rows: int
) -> Any:
  """The rows of one micro-batch; those that pad it have an empty mask.

  Args:
    batch, rows: as in `starts`, whose result is `first`.
    number: of the micro-batch.
  """
  index, end = _index(first, number, rows)
  # As neighbours of the last row they bring no prompt of their own.
  last = jnp.maximum(end, 1) - 1
  inside = jnp.minimum(index, last).reshape(-1)
  taken = jax.tree.map(lambda x: sharding.take_rows(x, inside), batch)
  there = (index < end).reshape(-1)

  def blank(part):
    if not _has_tokens(part):
      return part
    mask = there.reshape(-1, *[1] * (part.mask.ndim - 1))
    return part._replace(mask=part.mask & mask)

  return jax.tree.map(blank, taken, is_leaf=_has_tokens)


def put(
  x: Array, first: Int[Array, "N length"], number: Array, y: Array
) -> Array:
  """`x`, [B, ...], with what a micro-batch gave in the places of its rows."""
  index, end = _index(first, number, len(y) // len(first))
  outside = first.shape[1]
  index = jnp.where(index < end, index, outside).reshape(-1)
  return sharding.put_rows(x, index, y)


def _index(first, number, rows):
  """Numbers of a micro-batch's rows within each shard, and where they end."""
  begin, end = first[:, number, None], first[:, number + 1, None]
  return begin + jnp.arange(rows), end


def _rows(batch):
  """What holds the tokens."""
  parts = [batch] if _has_tokens(batch) else batch
  (rows,) = filter(_has_tokens, parts)
  return rows


def _has_tokens(x):
  return hasattr(x, "tokens") and hasattr(x, "prompts")
