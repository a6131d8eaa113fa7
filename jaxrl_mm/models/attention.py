"""Attention over a whole sequence, and of one new token over its caches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8

from jaxrl_mm import sharding
from jaxrl_mm.models import flash, packed
from jaxrl_mm.models.packed import Packing

LOWEST = jnp.finfo(jnp.float32).min


class Quantized(NamedTuple):
  """Vectors as int8 with one scale each; `values * scale` is the vector."""

  values: Int8[Array, "*shape E"]
  scale: Float[Array, "*shape"]


KeysOrValues = Float[Array, "..."] | Quantized


class Cache(NamedTuple):
  """Keys and values seen so far, stacked over layers.

  The prompt of a group is kept once (P prompts); each of the B rows keeps only
  its own T completion tokens. Heads stand before tokens, so that no product
  has to transpose a cache. Each may be `Quantized`.

  Attributes:
    prompt_k, prompt_v: [L, P, K, S, E].
    k, v: [L, B, K, T, E].
  """

  prompt_k: KeysOrValues
  prompt_v: KeysOrValues
  k: KeysOrValues
  v: KeysOrValues


class Seats(NamedTuple):
  """Which rows answer which prompt, where a prompt's rows are not neighbours.

  A prompt has G seats. Numbers count within a batch shard, so that no query
  travels.

  Attributes:
    row: [P, G] row on each seat, any row where the seat is empty.
    seat: [B] seat of each row, p * G + g.
  """

  row: Int[Array, "P G"]
  seat: Int[Array, " B"]


class CacheMask(NamedTuple):
  """Which entries of a `Cache` may be attended, and by whom.

  Attributes:
    prompt: [P, S].
    own: [B, T].
    seats: None where the B / P rows of a prompt stand side by side.
  """

  prompt: Bool[Array, "P S"]
  own: Bool[Array, "B T"]
  seats: Seats | None = None


class Causal(NamedTuple):
  """Each token may attend to the real tokens up to itself.

  Where there are fewer queries than keys, they are those of the last tokens.

  Attributes:
    real: [B, S], false on padding.
  """

  real: Bool[Array, "B S"]


Mask = Bool[Array, "#B T S"] | Causal | Packing


def full(
  q: Float[Array, "B T H E"],
  k: Float[Array, "B S K E"],
  v: Float[Array, "B S K E"],
  mask: Mask | None = None,
) -> Float[Array, "B T H E"]:
  """softmax(q k^T / sqrt(E)) v with H / K query heads a key head.

  By the best kernel of the platform that the program is compiled for: splash
  attention on TPUs for `Causal` masks, cuDNN on NVIDIA where it takes the
  shapes and the mesh does not cut the queries, else plain XLA. A query that may
  attend to nothing gets something finite, never NaN. With a `Packing`, q, k and
  v are streams, and each of their tokens attends as in its row.
  """
  if isinstance(mask, Packing):
    rows = (packed.unpack(x, mask) for x in (q, k, v))
    return packed.pack(_in_rows(*rows, mask), mask)
  if not isinstance(mask, Causal):
    return _fused(q, k, v, None if mask is None else mask[:, None])
  uncut = sharding.length_shards() == 1
  plain = lambda q, k, v, real: _fused(
    q, k, v, _causal(real, q.shape[1]), uncut
  )
  if not flash.splash_fits(q, k):
    return plain(q, k, v, mask.real)
  # Not by the default backend: a program can be compiled for a TPU elsewhere.
  return jax.lax.platform_dependent(
    q, k, v, mask.real, tpu=_splash, default=plain
  )


def _splash(q, k, v, real):
  of = real.astype(jnp.int32)
  return flash.splash(q, k, v, of[:, -q.shape[1] :], of)


def _fused(q, k, v, mask, uncut=True):
  """`uncut`: each device has all queries of its rows, as cuDNN asks."""
  kernel = "cudnn" if uncut and flash.cudnn_fits(q, k) else "xla"
  return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=kernel)


def _causal(real, queries):
  """As a matrix [B, 1, T, S]."""
  length = real.shape[1]
  before = jnp.tri(queries, length, length - queries, dtype=bool)
  return before & real[:, None, None, :]


def _in_rows(q, k, v, p):
  """Answers behind their prompts, and each prompt by itself, once."""
  prompt = p.brings.shape[1]
  answers = full(q[:, prompt:], k, v, Causal(p.real))
  prompts = _each_once(*(x[:, :prompt] for x in (q, k, v, p.real)), p.brings)
  return jnp.concatenate([prompts, answers], axis=1)


@jax.custom_vjp
def _each_once(q, k, v, real, brings):
  """Row after row of each shard; one that brings nothing costs nothing.

  The backward pass attends again: what it needs of one row would have room in
  all of them.
  """

  def one(_, row):
    *qkv, real, brings = row
    see = lambda: full(*qkv, Causal(real))
    skip = lambda: jnp.zeros_like(qkv[0])
    return None, jax.lax.cond(jnp.any(brings), see, skip)

  rows = _row_by_row((q, k, v, real, brings))
  return _side_by_side(jax.lax.scan(one, None, rows)[1])


def _each_once_back(saved, gradient):
  def one(_, row):
    *qkv, real, brings, gradient = row
    attend = lambda *qkv: full(*qkv, Causal(real))
    see = lambda: jax.vjp(attend, *qkv)[1](gradient)
    skip = lambda: tuple(map(jnp.zeros_like, qkv))
    return None, jax.lax.cond(jnp.any(brings), see, skip)

  rows = _row_by_row((*saved, gradient))
  back = jax.lax.scan(one, None, rows)[1]
  return *map(_side_by_side, back), None, None


_each_once.defvjp(lambda *rows: (_each_once(*rows), rows), _each_once_back)


def _row_by_row(arrays):
  """[B, ...] -> [rows of a shard, shards, ...] of each."""
  split = lambda x: x.reshape(sharding.batch_shards(), -1, *x.shape[1:])
  return tuple(jnp.moveaxis(split(x), 1, 0) for x in arrays)


def _side_by_side(x):
  """The way back."""
  return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def quantize(x: Float[Array, "*shape E"]) -> Quantized:
  """Each vector to int8, its largest entry to 127; the error is half a step."""
  wide = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(wide), axis=-1) / 127
  steps = wide / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)[..., None]
  return Quantized(jnp.round(steps).astype(jnp.int8), scale)


def cached(
  q: Float[Array, "B 1 H E"],
  k: Float[Array, "B 1 K E"],
  v: Float[Array, "B 1 K E"],
  cache: Cache,
  mask: CacheMask,
) -> Float[Array, "B 1 H E"]:
  """One new token a row attends to its prompt, its past and itself.

  The queries of a group are stacked against the group's one prompt cache, so
  the prompt is read once a group. The three parts are merged by their softmax
  sums: the result equals attention over their concatenation.

  Args:
    q, k, v: of the new token.
    cache: one layer of the cache (no L axis), not yet holding the new token.
    mask: what may be attended.
  """
  rows, _, heads, width = q.shape
  kv_heads = k.shape[2]
  queries = (q * width**-0.5).reshape(rows, kv_heads, heads // kv_heads, width)
  stacked = _stack(queries, mask)
  prompt = _attend(stacked, cache.prompt_k, cache.prompt_v, mask.prompt)
  prompt = [_unstack(x, mask, queries.shape[2]) for x in prompt]
  own = _attend(queries, cache.k, cache.v, mask.own)
  logit = jnp.sum(
    queries.astype(jnp.float32) * k[:, 0, :, None].astype(jnp.float32),
    axis=-1,
    keepdims=True,
  )
  new = v[:, 0, :, None].astype(jnp.float32), logit, jnp.ones_like(logit)

  parts = prompt, own, new
  top = jnp.maximum(jnp.maximum(prompt[1], own[1]), logit)
  share = [jnp.exp(part[1] - top) for part in parts]
  out = sum(part[0] * x for part, x in zip(parts, share))
  out = out / sum(part[2] * x for part, x in zip(parts, share))
  return out.astype(v.dtype).reshape(q.shape)


def _attend(q, k, v, mask):
  """Weighted values [N, K, Q, E]; largest logit, sum of weights [N, K, Q, 1].

  The weights are exp(logit - largest logit): what is missing to a softmax is
  the division by their sum.
  """
  logits = jnp.einsum(
    "nkqe,nkse->nkqs", q, _values(k, q), preferred_element_type=jnp.float32
  )
  if isinstance(k, Quantized):
    logits = logits * k.scale[:, :, None]
  logits = jnp.where(mask[:, None, None], logits, LOWEST)
  top = jnp.max(logits, axis=-1, keepdims=True)
  weights = jnp.exp(logits - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  if isinstance(v, Quantized):
    weights = weights * v.scale[:, :, None]
  out = jnp.einsum(
    "nkqs,nkse->nkqe",
    weights.astype(q.dtype),
    _values(v, q),
    preferred_element_type=jnp.float32,
  )
  return out, top, total


def _values(x, like):
  return x.values.astype(like.dtype) if isinstance(x, Quantized) else x


def _stack(x, mask):
  """Rows [B, K, h, E] -> the queries of each prompt [P, K, G * h, E]."""
  if mask.seats is not None:
    x = sharding.take_rows(x, mask.seats.row.reshape(-1))
  x = x.reshape(mask.prompt.shape[0], -1, *x.shape[1:])
  return jnp.moveaxis(x, 1, 2).reshape(x.shape[0], x.shape[2], -1, x.shape[4])


def _unstack(x, mask, queries):
  """The way back: [P, K, G * h, E] -> [B, K, h, E]."""
  x = x.reshape(*x.shape[:2], -1, queries, x.shape[3])
  x = jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:])
  return x if mask.seats is None else sharding.take_rows(x, mask.seats.seat)
