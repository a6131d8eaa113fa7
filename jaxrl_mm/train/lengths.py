"""Answers of unequal length: a micro-batch is cut to its longest row.

Rows that need as much room come together, and a micro-batch runs at the
smallest of a few lengths that all its rows fit. Packing several rows into one
would save the padding of prompts too, but shared pictures, positions in three
axes, replayed rows and losses by row would all have to know of it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrl_mm import sharding

# Those that have one entry a token; of `advantages` only where they do.
_BY_TOKEN = (
  "tokens",
  "mask",
  "logp",
  "advantages",
  "reference_logp",
  "trainer_logp",
  "values",
  "returns",
)


def bounds(length: int, count: int) -> tuple[int, ...]:
  """`count` lengths in equal steps, the last one whole.

  `bounds(10, 4)` is `(3, 5, 8, 10)`.
  """
  return tuple(-(-length * (i + 1) // count) for i in range(count))


def sort_rows(batch: Any, count: int) -> Any:
  """The rows of each batch shard, those that fit a smaller bound in front.

  Rows of one bound keep their order, so that most of a group stay side by
  side and their picture is seen once.

  Args:
    batch: `Demonstrations`, `Pairs`, `Trajectories`, or a tuple that has one
      of them; every leaf has the leading axis B.
    count: of the bounds.
  """
  of_shards = _bound(batch, count).reshape(sharding.batch_shards(), -1)
  order = jnp.argsort(of_shards, axis=1, stable=True).reshape(-1)
  return jax.tree.map(lambda x: sharding.take_rows(x, order), batch)


def at_its_length(f: Callable[[Any], Any], batch: Any, count: int) -> Any:
  """`f(batch)` without the columns that no row of the batch needs.

  `f` is compiled once for each bound; its result must have the same shapes
  for all of them.

  Args:
    f: of a batch.
    batch: see `sort_rows`.
    count: of the bounds; 1 leaves the batch as it is.
  """
  if count == 1:
    return f(batch)
  branches = [
    lambda batch, bound=bound: f(_cut(batch, bound))
    for bound in bounds(_rows(batch).tokens.shape[-1], count)
  ]
  return jax.lax.switch(jnp.max(_bound(batch, count)), branches, batch)


def _rows(batch):
  """What holds the tokens."""
  (rows,) = [x for x in _parts(batch) if _has_tokens(x)]
  return rows


def _parts(batch):
  return [batch] if _has_tokens(batch) else list(batch)


def _has_tokens(x):
  return hasattr(x, "tokens")


def _bound(batch, count) -> Int[Array, " B"]:
  """Number of the smallest bound that each row fits."""
  mask = _rows(batch).mask
  length = mask.shape[-1]
  ends = jnp.where(mask, jnp.arange(1, length + 1), 0)
  ends = jnp.max(ends, axis=tuple(range(1, mask.ndim)))
  return jnp.searchsorted(jnp.array(bounds(length, count)), ends)


def _cut(batch, length):
  """The first `length` columns of whatever has one entry a token."""

  def cut(x):
    if not _has_tokens(x):
      return x
    fields = {name: getattr(x, name, None) for name in _BY_TOKEN}
    short = {
      name: field[..., :length]
      for name, field in fields.items()
      if field is not None and field.ndim == x.tokens.ndim
    }
    return x._replace(**short)

  return jax.tree.map(cut, batch, is_leaf=_has_tokens)
