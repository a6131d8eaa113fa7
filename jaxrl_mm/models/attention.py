"""Attention over a whole sequence, and of one new token over its caches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Cache(NamedTuple):
  """Keys and values seen so far, stacked over layers.

  The prompt of a group is kept once (P prompts); each of the B = P * G rows
  keeps only its own T completion tokens.

  Attributes:
    prompt_k, prompt_v: [L, P, S, K, E].
    k, v: [L, B, T, K, E].
  """

  prompt_k: Float[Array, "*L P S K E"]
  prompt_v: Float[Array, "*L P S K E"]
  k: Float[Array, "*L B T K E"]
  v: Float[Array, "*L B T K E"]


class CacheMask(NamedTuple):
  """Which entries of a `Cache` may be attended: [P, S] and [B, T]."""

  prompt: Bool[Array, "P S"]
  own: Bool[Array, "B T"]


def full(
  q: Float[Array, "B T H E"],
  k: Float[Array, "B S K E"],
  v: Float[Array, "B S K E"],
  mask: Bool[Array, "#B T S"] | None = None,
) -> Float[Array, "B T H E"]:
  """softmax(q k^T / sqrt(E)) v with H / K query heads a key head.

  A query that may attend to nothing gets a finite average, never NaN.
  """
  return jax.nn.dot_product_attention(
    q, k, v, mask=None if mask is None else mask[:, None]
  )


def cached(
  q: Float[Array, "B 1 H E"],
  k: Float[Array, "B 1 K E"],
  v: Float[Array, "B 1 K E"],
  cache: Cache,
  mask: CacheMask,
) -> Float[Array, "B 1 H E"]:
  """One new token a row attends to its prompt, its past and itself.

  The queries of a group are stacked against the group's one prompt cache, so
  the prompt is read once a group. The logits of the three parts share one
  softmax: the result equals attention over their concatenation.

  Args:
    q, k, v: of the new token.
    cache: one layer of the cache (no L axis), not yet holding the new token.
    mask: what may be attended.
  """
  heads, width = q.shape[2:]
  prompts, kv_heads = cache.prompt_k.shape[0], cache.k.shape[2]
  # b row, p prompt, g sample of the prompt, k key head, h query of that head
  q = (q * width**-0.5).reshape(q.shape[0], kv_heads, heads // kv_heads, width)
  grouped = q.reshape(prompts, -1, *q.shape[1:])
  logits = lambda equation, *xs: jnp.einsum(
    equation, *xs, preferred_element_type=jnp.float32
  )
  low = jnp.finfo(jnp.float32).min
  prompt = logits("pgkhe,pske->pgkhs", grouped, cache.prompt_k)
  prompt = jnp.where(mask.prompt[:, None, None, None], prompt, low)
  prompt = prompt.reshape(*q.shape[:3], -1)
  own = logits("bkhe,btke->bkht", q, cache.k)
  own = jnp.where(mask.own[:, None, None], own, low)
  new = logits("bkhe,btke->bkht", q, k)

  weights = jax.nn.softmax(jnp.concatenate([prompt, own, new], -1))
  split = (prompt.shape[-1], prompt.shape[-1] + own.shape[-1])
  on_prompt, on_own, on_new = jnp.split(weights.astype(v.dtype), split, axis=-1)
  on_prompt = on_prompt.reshape(*grouped.shape[:-1], -1)
  out = jnp.einsum("pgkhs,pske->pgkhe", on_prompt, cache.prompt_v)
  out = out.reshape(q.shape)
  out = out + jnp.einsum("bkht,btke->bkhe", on_own, cache.v)
  out = out + jnp.einsum("bkht,btke->bkhe", on_new, v)
  return out.reshape(q.shape[0], 1, heads, width)
