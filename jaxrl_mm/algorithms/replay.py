"""The Selective Sample Buffer of Skywork R1V2
(https://arxiv.org/abs/2504.16656, section 3.3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxrl_mm import masked, sharding
from jaxrl_mm.algorithms.groups import group_stats, present_rows
from jaxrl_mm.structs import Number, Trajectories

# Age of a slot that holds nothing: staler than anything.
EMPTY = -1


class ReplayState(NamedTuple):
  """The buffer.

  Attributes:
    rows: trajectories with the leading axis C (capacity).
    priority: [C] |advantage| of each row.
    born: [C] the update in which a row entered, EMPTY where there is none.
    update: number of updates so far.
    key: of the next draw.
    effective_before: share of this batch's rows with an advantage.
    effective_after: the same once ineffective rows were replaced.
    replayed: [B] true where a row came from the buffer.
  """

  rows: Trajectories
  priority: Float[Array, " C"]
  born: Int[Array, " C"]
  update: Int[Array, ""]
  key: PRNGKeyArray
  effective_before: Float[Array, ""]
  effective_after: Float[Array, ""]
  replayed: Bool[Array, " B"]


def selective_sample_buffer(
  capacity: int,
  *,
  priority_exponent: Number = 1.0,
  max_age: int | None = None,
  per_token: bool = False,
  seed: int = 0,
) -> optax.GradientTransformation:
  """Replaces rows that teach nothing by earlier rows that did.

  B rows in, B rows out. A row is effective if its advantage is not zero and
  the verifiable rewards of its group differ; a row alone in its group is
  judged by its advantage. Every other row is replaced by a buffered one,
  drawn with probability proportional to |A|^priority_exponent, without
  repeats while enough are buffered. Then the batch's own effective rows enter,
  the stalest leaving first. A replayed row keeps the log-probs and the
  advantage it was drawn with, so the ratio and its clipping account for its
  age. An empty buffer changes nothing.

  The paper gives the priority |A| and leaves size, exponent, age and mix
  open; these arguments are where those choices live.

  Args:
    capacity: rows the buffer holds.
    priority_exponent: 0 draws uniformly.
    max_age: rows older than so many updates are dropped; None keeps all.
    per_token: set where the advantages that reach the buffer are [B, T].
    seed: of the draws.
  """
  if capacity < 1:
    raise ValueError(f"capacity must be at least 1, not {capacity}")

  def init(trajectories):
    rows = trajectories.mask.shape[0]
    if per_token and trajectories.advantages.ndim == 1:
      spread = jnp.zeros(trajectories.mask.shape, jnp.float32)
      trajectories = trajectories._replace(advantages=spread)
    empty = jax.tree.map(
      lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), trajectories
    )
    return ReplayState(
      rows=empty,
      priority=jnp.zeros(capacity, jnp.float32),
      born=jnp.full(capacity, EMPTY, jnp.int32),
      update=jnp.zeros((), jnp.int32),
      key=jax.random.key(seed),
      effective_before=jnp.zeros((), jnp.float32),
      effective_after=jnp.zeros((), jnp.float32),
      replayed=jnp.zeros(rows, bool),
    )

  def update(trajectories, state, params=None):
    del params
    _check_shapes(trajectories, state)
    key, now = jax.random.split(state.key)
    born = state.born
    if max_age is not None:
      born = jnp.where(state.update - born > max_age, EMPTY, born)
    effective = effective_rows(trajectories)
    held = born != EMPTY
    replayed = ~effective & jnp.any(held)
    tiny = jnp.finfo(jnp.float32).tiny
    log_weight = priority_exponent * jnp.log(jnp.maximum(state.priority, tiny))
    log_weight = jnp.where(held, log_weight, -jnp.inf)
    draws = _draw(now, log_weight, effective.shape[0])
    # The n-th row to replace takes the n-th draw.
    draw = draws[jnp.cumsum(replayed) - 1]
    drawn = sharding.gather_rows(state.rows, draw)
    # Rows are read before any is overwritten, so that a donated buffer can be
    # changed in place; the compiler would otherwise copy all of it.
    drawn, effective = jax.lax.optimization_barrier((drawn, effective))
    mixed = _choose(replayed, drawn, trajectories)
    rows, priority, born = _insert(
      trajectories, effective, state.update, state.rows, state.priority, born
    )
    share = lambda x: jnp.mean(x, dtype=jnp.float32)
    return mixed, ReplayState(
      rows=rows,
      priority=priority,
      born=born,
      update=state.update + 1,
      key=key,
      effective_before=share(effective),
      effective_after=share(effective | replayed),
      replayed=replayed,
    )

  return optax.GradientTransformation(init, update)


def selective_sample_replay(
  batch_rows: int, *, priority_exponent: Number = 1.0, seed: int = 0
) -> optax.GradientTransformation:
  """VL-Rethinker's replay (https://arxiv.org/abs/2504.08837).

  The same transform with that paper's numbers: it keeps half a batch of rows
  and has no age limit. Its code also draws from the current effective rows
  again and now and then keeps a row that is all right; this does not.

  Args:
    batch_rows: B.
    priority_exponent: alpha of the paper.
    seed: of the draws.
  """
  return selective_sample_buffer(
    max(batch_rows // 2, 1), priority_exponent=priority_exponent, seed=seed
  )


def effective_rows(trajectories: Trajectories) -> Bool[Array, " B"]:
  """Rows with an advantage, finite and not zero, whose group's outcomes differ
  or who are alone in it."""
  advantages = trajectories.advantages
  advantages = advantages.reshape(advantages.shape[0], -1)
  usable = jnp.isfinite(advantages).all(1) & (advantages != 0).any(1)
  present = present_rows(trajectories)
  stats = group_stats(trajectories.verifiable, trajectories.group, present)
  return usable & (stats.varies | (stats.size == 1)) & present


def _check_shapes(trajectories, state):
  if jax.tree.structure(trajectories) != jax.tree.structure(state.rows):
    raise ValueError(
      "the buffer's state was made for trajectories with other fields: call "
      "init with every optional field that update will see"
    )
  new, held = (x.advantages.ndim for x in (trajectories, state.rows))
  if new != held:
    raise ValueError(
      f"advantages of rank {new} reach a buffer made for rank {held}: "
      "[B, T] needs per_token=True, [B] needs it False"
    )


def _priority(trajectories):
  """|A| of each row, its mean over the row's tokens if they have their own."""
  size = jnp.abs(masked.widen(trajectories.advantages))
  if size.ndim == 2:
    size = masked.mean(size, trajectories.mask, axis=1)
  return size.astype(jnp.float32)


def _draw(key, log_weight, count):
  """`count` slots, each drawn by weight; no repeats while slots last.

  Gumbel noise on log weights sorts the slots as drawing without replacement
  would. Draws beyond the number of held slots are with replacement.
  """
  once, again = jax.random.split(key)
  noisy = log_weight + jax.random.gumbel(once, log_weight.shape)
  _, order = jax.lax.top_k(noisy, min(count, log_weight.shape[0]))
  # Relative to the largest, so that no power under- or overflows in the sum.
  largest = jnp.maximum(jnp.max(log_weight), jnp.finfo(jnp.float32).min)
  mass = jnp.cumsum(jnp.exp(log_weight - largest))
  # 1 - u lies in (0, 1]: the first slot whose mass reaches it holds a row.
  level = mass[-1] * (1 - jax.random.uniform(again, (count,)))
  repeats = jnp.minimum(jnp.searchsorted(mass, level), mass.shape[0] - 1)
  drawn = jnp.arange(count) < jnp.sum(jnp.isfinite(log_weight))
  return jnp.where(drawn, jnp.resize(order, count), repeats)


def _insert(new, effective, now, rows, priority, born):
  """The effective rows take the empty and then the stalest slots."""
  capacity = born.shape[0]
  stalest = jnp.argsort(born, stable=True)
  rank = jnp.cumsum(effective) - 1
  fits = effective & (rank < capacity)
  # Rows that do not enter are sent out of bounds, where a scatter drops them.
  slot = jnp.where(fits, stalest[jnp.clip(rank, 0, capacity - 1)], capacity)
  put = lambda x, y: x.at[slot].set(y, mode="drop")
  new = jax.tree.map(lambda x, y: y.astype(x.dtype), rows, new)
  return (
    sharding.scatter_rows(rows, slot, new),
    put(priority, _priority(new)),
    put(born, jnp.broadcast_to(now, slot.shape)),
  )


def _choose(replayed, old, new):
  """Row by row, `old` where replayed."""
  pick = lambda x, y: jnp.where(
    replayed.reshape((-1,) + (1,) * (x.ndim - 1)), x, y
  )
  return jax.tree.map(pick, old, new)
