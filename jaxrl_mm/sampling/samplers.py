"""Drawing one token a row from logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

LOWEST = jnp.finfo(jnp.float32).min
BLOCK = 128


def truncate(
  logits: Float[Array, "B V"], *, top_k: int = 0, top_p: float = 1.0
) -> Float[Array, "B V"]:
  """Keeps the `top_k` largest logits, then the smallest set of mass `top_p`.

  Args:
    logits: [B, V], already divided by the temperature.
    top_k: 0 keeps all. Ties at the k-th place are all kept.
    top_p: 1.0 keeps all; the token that crosses the mass is kept, so one
      always is (https://arxiv.org/abs/1904.09751).

  Returns:
    The logits, very negative where dropped.
  """
  if top_k:
    kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
    logits = jnp.where(logits < kth, LOWEST, logits)
  if top_p < 1.0:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ordered)
    kept = (jnp.cumsum(probs, axis=-1) - probs < top_p).at[:, 0].set(True)
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), -1, keepdims=True)
    logits = jnp.where(logits < least, LOWEST, logits)
  return logits


def draw(
  keys: Key[Array, " B"],
  logits: Float[Array, "B V"],
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
  """Draws a token a row and gives its log-prob.

  Args:
    keys: [B] one key a row, so that a row's draw depends on its key alone.
    logits: [B, V].
    temperature: 0 takes the most likely token.
    top_k, top_p: see `truncate`.

  Returns:
    Tokens, and their log-probs (nats) under softmax(logits / temperature)
    before truncation: what the trainer computes for the same tokens. With
    temperature 0 that is softmax(logits).
  """
  logits = logits.astype(jnp.float32) / (temperature or 1.0)
  if temperature == 0:
    tokens = jnp.argmax(logits, axis=-1)
  else:
    kept = truncate(logits, top_k=top_k, top_p=top_p)
    tokens = _choose(jax.vmap(jax.random.uniform)(keys), kept)
  logp = jax.nn.log_softmax(logits)
  return tokens, jnp.take_along_axis(logp, tokens[:, None], axis=-1)[:, 0]


def _choose(uniform, logits):
  """The token at which the cumulative probability passes `uniform`.

  One random number a row instead of one a token: with Gumbel noise making the
  noise costs as much as a layer. Blocks are summed before tokens, so that
  rounding does not grow with the vocabulary.
  """
  weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  room = -logits.shape[-1] % BLOCK
  blocks = jnp.pad(weights, [(0, 0), (0, room)])
  blocks = blocks.reshape(weights.shape[0], -1, BLOCK)
  sums = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
  target = uniform[:, None] * sums[:, -1:]
  block = jnp.argmax(sums > target, axis=-1)[:, None]
  before = jnp.take_along_axis(jnp.pad(sums, [(0, 0), (1, 0)]), block, axis=-1)
  inside = jnp.take_along_axis(blocks, block[..., None], axis=1)[:, 0]
  passed = jnp.cumsum(inside, axis=-1) > target - before
  # Rounding may leave none that passes; then the likeliest one.
  first = jnp.where(
    jnp.any(passed, axis=-1),
    jnp.argmax(passed, axis=-1),
    jnp.argmax(inside, axis=-1),
  )
  return block[:, 0] * BLOCK + first
