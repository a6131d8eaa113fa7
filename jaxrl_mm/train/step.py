"""One optimizer step, whatever the loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from jaxrl_mm import pytree, sharding
from jaxrl_mm.structs import Metrics, Pairs, Prompts
from jaxrl_mm.train import micro_batches
from jaxrl_mm.train_state import TrainState

# (params, rows) -> loss, its weight, metrics. The loss of a batch is the
# weighted mean over its micro-batches, so a loss that is a mean over tokens
# gives its number of tokens as the weight and stays exact.
LossFn = Callable[[Any, Any], tuple[Array, Array, Metrics]]


def accumulate_gradients(
  loss_fn: LossFn, params: Any, batch: Any, micro_batch: int, room: int = 0
) -> tuple[Any, Array, Metrics]:
  """Gradient, loss and metrics of `batch`, a few rows at a time.

  Args:
    loss_fn: see `LossFn`. Where `room` is set it gets rows with an empty mask
      too, which must count nowhere.
    params: the weights.
    batch: a pytree whose leaves all have the leading axis B.
    micro_batch: rows a device sees at once, at most.
    room: tokens a device sees at once, at most, see `micro_batches`; then
      `batch` is as there. 0 does not count them.

  Returns:
    Gradient and loss are those of the whole batch at once, to rounding, in
    float32; metrics are means over micro-batches by the loss's weight.
  """

  def weighted(params, rows):
    loss, weight, metrics = loss_fn(params, rows)
    metrics = jax.tree.map(lambda m: m * weight, metrics)
    return loss * weight, (weight, metrics)

  gradient = partial(jax.value_and_grad(weighted, has_aux=True), params)
  gradient = jax.jit(gradient, inline=True)  # traced once, for shapes and sums
  if room:
    total = _sum_packed(gradient, batch, micro_batch, room)
  else:
    total = _sum(gradient, split_rows(batch, micro_batch))
  (loss, (weight, metrics)), gradient = total
  scale = 1 / jnp.maximum(weight, 1e-9)
  return jax.tree.map(lambda x: x * scale, (gradient, loss, metrics))


def _sum(f, micros):
  """Sum of `f` over micro-batches that stand one after the other."""
  add = lambda total, rows: (jax.tree.map(jnp.add, total, f(rows)), None)
  first = jax.tree.map(lambda x: x[0], micros)
  return jax.lax.scan(add, _zeros(f, first), micros)[0]


def _sum_packed(f, batch, micro_batch, room):
  """The same over as many micro-batches as the rows of a shard need."""
  first = micro_batches.starts(batch, micro_batch, room)
  rows = lambda number: micro_batches.take(batch, first, number, micro_batch)
  add = lambda number, total: jax.tree.map(jnp.add, total, f(rows(number)))
  zeros = _zeros(lambda number: f(rows(number)), jnp.int32(0))
  return jax.lax.fori_loop(0, micro_batches.count(first), add, zeros)


def _zeros(f, x):
  """To sum up f(x): sums of narrow gradients are wide, or small ones would be
  lost in large."""
  wide = lambda s: jnp.promote_types(s.dtype, jnp.float32)
  make = lambda s: jnp.zeros(s.shape, wide(s))
  return jax.tree.map(make, jax.eval_shape(f, x))


def split_rows(batch: Any, micro_batch: int) -> Any:
  """[B, ...] -> [n, B / n, ...]; each device cuts up its own rows."""
  shards = sharding.batch_shards()

  def split(x):
    size = min(micro_batch, x.shape[0] // shards)
    if x.shape[0] % (shards * size):
      raise ValueError(
        f"{x.shape[0]} rows are no multiple of {shards} shards * {size} rows "
        "of a micro-batch"
      )
    parts = x.shape[0] // (shards * size)
    x = x.reshape(shards, parts, size, *x.shape[1:])
    x = x.swapaxes(0, 1).reshape(parts, shards * size, *x.shape[3:])
    return sharding.constrain(x, None, "batch", *[None] * (x.ndim - 2))

  return jax.tree.map(split, batch)


def map_rows(
  f: Callable[[Any], Any], batch: Any, micro_batch: int, room: int = 0
) -> Any:
  """`f(batch)` for a function that treats every row alike, a few at a time.

  Args:
    f: from a batch to arrays with as many rows.
    batch, micro_batch, room: as in `accumulate_gradients`.
  """
  if room:
    return _map_packed(f, batch, micro_batch, room)
  shards = sharding.batch_shards()

  def merge(x):
    parts = x.shape[0]
    x = x.reshape(parts, shards, -1, *x.shape[2:])
    x = x.swapaxes(0, 1).reshape(-1, *x.shape[3:])
    return sharding.constrain(x, "batch", *[None] * (x.ndim - 1))

  return jax.tree.map(merge, jax.lax.map(f, split_rows(batch, micro_batch)))


def _map_packed(f, batch, micro_batch, room):
  first = micro_batches.starts(batch, micro_batch, room)
  of = lambda number: f(micro_batches.take(batch, first, number, micro_batch))
  put = lambda number, total: jax.tree.map(
    lambda x, y: micro_batches.put(x, first, number, y), total, of(number)
  )
  rows = jax.tree.leaves(batch)[0].shape[0]
  zeros = jax.tree.map(
    lambda s: jnp.zeros((rows, *s.shape[1:]), s.dtype),
    jax.eval_shape(of, jnp.int32(0)),
  )
  return jax.lax.fori_loop(0, micro_batches.count(first), put, zeros)


@jax.jit
def count_tokens(*masks: Bool[Array, "..."]) -> Array:
  """True entries of all masks, those of other processes too."""
  return sum(jnp.sum(mask, dtype=jnp.float32) for mask in masks)


def flatten_pairs(
  pairs: Pairs,
) -> tuple[Prompts, Int[Array, "rows T"], Bool[Array, "rows T"]]:
  """Prompts, tokens and mask of 2 B rows, the two of a pair side by side."""
  prompts = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), pairs.prompts)
  merge = lambda x: x.reshape(-1, x.shape[-1])
  return prompts, merge(pairs.tokens), merge(pairs.mask)


def apply_gradient(
  state: TrainState,
  gradient: Any,
  loss: Array,
  metrics: Metrics,
  optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
  """The next state, and the metrics every stage has.

  Those are `loss`, `gradient_norm` before clipping, and `bad_steps`: updates
  in a row, this one included, that were skipped as not finite.
  """
  # A bad loss spoils the step even where its gradient happens to be finite.
  checked = jax.tree.map(
    lambda g: jnp.where(jnp.isfinite(loss), g, jnp.nan), gradient
  )
  updates, opt_state = optimizer.update(checked, state.opt_state, state.params)
  metrics = metrics | {
    "loss": loss,
    "gradient_norm": optax.tree.norm(gradient),
    "bad_steps": opt_state.notfinite_count,
  }
  state = state._replace(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
  )
  return state, metrics


def make_train_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  micro_batch: int,
  shardings: TrainState | None = None,
  room: int = 0,
):
  """A jitted `(state, frozen, batch) -> (state, metrics)`.

  The state is donated; only its weights have gradients.

  Args:
    loss_fn: see `LossFn`; its weights are the trained and the frozen ones.
    optimizer: optax.
    micro_batch: rows a device sees at once, at most.
    shardings: of the state; pinned on the way out, or gradients and weights
      would lose their fsdp axis. None leaves it to the compiler.
    room: see `accumulate_gradients`.
  """

  def step(state, frozen, batch):
    gradient, loss, metrics = accumulate_gradients(
      lambda trained, rows: loss_fn(pytree.join(trained, frozen), rows),
      state.params,
      batch,
      micro_batch,
      room,
    )
    return apply_gradient(state, gradient, loss, metrics, optimizer)

  out = None if shardings is None else (shardings, None)
  return jax.jit(step, donate_argnums=0, out_shardings=out)
