"""Prefill and decode in one jitted program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxrl_mm.models import vlm
from jaxrl_mm.models.attention import Cache, CacheMask
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.sampling import samplers
from jaxrl_mm.sharding import constrain
from jaxrl_mm.structs import Completions, Prompts


class _State(NamedTuple):
  step: Int[Array, ""]
  hidden: Float[Array, "B D"]
  cache: Cache
  done: Bool[Array, " B"]
  drawn: Completions


def generate(
  config: ModelConfig,
  params: vlm.Params,
  prompts: Prompts,
  key: PRNGKeyArray,
  *,
  samples_per_prompt: int,
  max_tokens: int,
  end_token: int,
  pad_token: int,
  image_token: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> Completions:
  """Draws `samples_per_prompt` completions for each prompt.

  The picture is encoded and the prompt prefilled once a prompt; its samples
  share that cache. Decoding stops when every row has ended. A row's tokens
  depend on `key` and the row's number, not on the mesh.

  Args:
    config, params: the model.
    prompts: [P, S] left-padded; `images` None where there are no pictures.
    key: of this call.
    samples_per_prompt: G.
    max_tokens: T, columns of the result.
    end_token: ends a row; it is drawn, scored and kept in the mask.
    pad_token: fills the columns behind it.
    image_token: id of the image placeholder.
    temperature, top_k, top_p: see `samplers.draw`.

  Returns:
    Completions of B = P * G rows, the samples of a prompt side by side.
  """
  of_prompt, behind = vlm.positions(prompts, max_tokens)
  behind = jnp.repeat(behind, samples_per_prompt, axis=0)
  hidden, cache = _prefill(
    config,
    params,
    prompts,
    of_prompt,
    samples_per_prompt,
    max_tokens,
    image_token,
  )
  rows = hidden.shape[0]
  row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
  weights = vlm.head(params).astype(hidden.dtype)
  columns = jnp.arange(max_tokens)

  def proceed(state):
    return (state.step < max_tokens) & ~jnp.all(state.done)

  def body(state):
    step = state.step
    logits = jnp.einsum(
      "bd,vd->bv", state.hidden, weights, preferred_element_type=jnp.float32
    )
    keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, step)
    token, logp = samplers.draw(
      keys, logits, temperature=temperature, top_k=top_k, top_p=top_p
    )
    alive = ~state.done
    write = lambda x, y, pad: x.at[:, step].set(jnp.where(alive, y, pad))
    drawn = Completions(
      tokens=write(state.drawn.tokens, token, pad_token),
      mask=state.drawn.mask.at[:, step].set(alive),
      logp=write(state.drawn.logp, logp, 0),
    )
    x = vlm.embed(config, params, token[:, None], None, image_token)
    mask = CacheMask(
      prompts.mask, jnp.broadcast_to(columns < step, (rows, max_tokens))
    )
    x, (k, v) = vlm.run_decoder(
      config, params, x, behind[:, step][:, None], mask, state.cache
    )
    at = (0, 0, step, 0, 0)
    cache = state.cache._replace(
      k=jax.lax.dynamic_update_slice(state.cache.k, k, at),
      v=jax.lax.dynamic_update_slice(state.cache.v, v, at),
    )
    done = state.done | (token == end_token)
    return _State(step + 1, x[:, 0], cache, done, drawn)

  drawn = Completions(
    jnp.full((rows, max_tokens), pad_token, jnp.int32),
    jnp.zeros((rows, max_tokens), bool),
    jnp.zeros((rows, max_tokens), jnp.float32),
  )
  start = _State(
    jnp.zeros((), jnp.int32), hidden, cache, jnp.zeros(rows, bool), drawn
  )
  return jax.lax.while_loop(proceed, body, start).drawn


def _prefill(
  config,
  params,
  prompts,
  positions,
  samples_per_prompt,
  max_tokens,
  image_token,
):
  """Last hidden state of each prompt, repeated, and the filled cache."""
  features = None
  if prompts.images is not None:
    features = vlm.encode_images(config, params, prompts.images)
  x = vlm.embed(config, params, prompts.tokens, features, image_token)
  x = constrain(x, "batch", None, None)
  x, (k, v) = vlm.run_decoder(
    config, params, x, positions, vlm.causal(prompts.mask)
  )
  hidden = jnp.repeat(x[:, -1], samples_per_prompt, axis=0)
  d = config.decoder
  own = (d.layers, hidden.shape[0], max_tokens, d.kv_heads, d.head_dim)
  place = lambda y: constrain(y, None, "batch", None, "kv_heads", None)
  empty = place(jnp.zeros(own, k.dtype))
  return hidden, Cache(place(k), place(v), empty, empty)
