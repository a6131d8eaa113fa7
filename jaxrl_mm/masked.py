"""Statistics over masked arrays, and log-probs that never build [B, T, V].

Everything here is computed in float32, whatever comes in. An empty mask gives
zero, never NaN.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

Axis = int | tuple[int, ...] | None


def widen(x: ArrayLike) -> Array:
  """float32 from anything narrower; float64 stays what it is."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def total(
  x: Float[ArrayLike, "..."], mask: ArrayLike, axis: Axis = None
) -> Array:
  """Sum of `x` where `mask` is true; garbage under the mask cannot leak."""
  return jnp.sum(jnp.where(mask, widen(x), 0), axis=axis)


def mean(
  x: Float[ArrayLike, "..."], mask: ArrayLike, axis: Axis = None
) -> Array:
  """Mean of `x` over the true entries of `mask`; zero where there are none."""
  count = jnp.sum(jnp.broadcast_to(mask, jnp.shape(x)), axis=axis)
  return total(x, mask, axis) / jnp.maximum(count, 1)


def token_logp(
  hidden: Float[Array, "B T D"],
  head: Float[Array, "V D"],
  tokens: Int[Array, "B T"],
  *,
  temperature: float = 1.0,
  chunk: int = 256,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Log-prob of each token and entropy of each distribution.

  The logits of `chunk` columns exist at a time, in the backward pass too
  (they are recomputed), so memory is B * chunk * V instead of B * T * V.

  Args:
    hidden: final hidden states; `hidden[:, t]` predicts `tokens[:, t]`.
    head: output embedding, one row a vocabulary entry.
    tokens: the tokens to score.
    temperature: divides the logits, as the sampler does.
    chunk: columns of T scored at once.

  Returns:
    `log softmax(hidden head^T / temperature)[tokens]` in nats, and the
    entropy of the same distribution in nats; both float32 [B, T].
  """
  length = tokens.shape[1]
  chunk = min(chunk, length)
  padding = -length % chunk
  # Every n-th column, not neighbours: where T is cut over devices, each scores
  # columns of its own part.
  columns = lambda x: jnp.moveaxis(
    jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)).reshape(
      x.shape[0], chunk, -1, *x.shape[2:]
    ),
    2,
    0,
  )
  score = jax.checkpoint(partial(_score, head, temperature))
  _, scores = jax.lax.scan(
    lambda _, xs: (None, score(*xs)), None, (columns(hidden), columns(tokens))
  )
  return jax.tree.map(
    lambda y: jnp.moveaxis(y, 0, 2).reshape(tokens.shape[0], -1)[:, :length],
    scores,
  )


def _score(head, temperature, hidden, tokens):
  logits = jnp.einsum(
    "btd,vd->btv",
    hidden,
    head.astype(hidden.dtype),
    preferred_element_type=jnp.float32,
  )
  log_probs = jax.nn.log_softmax(logits / temperature)
  picked = jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
  return picked, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def lengths(mask: Bool[ArrayLike, "B T"]) -> Int[Array, " B"]:
  """Number of true entries a row."""
  return jnp.sum(jnp.asarray(mask), axis=-1)
