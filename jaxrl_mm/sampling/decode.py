"""The two programs of the sampler: fill places with prompts, decode slots.

A *place* holds the cache of one prompt, a *slot* the cache of one row that is
being decoded. Any row may sit in any slot; a row finds its prompt through its
seat (`attention.Seats`), so that the cache of a prompt is never copied for its
rows and is read once for all of them.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxrl_mm.models import attention, vlm
from jaxrl_mm.models.attention import Cache, CacheMask, Causal, Seats
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.sampling import samplers
from jaxrl_mm.sharding import constrain, put_rows, take_rows
from jaxrl_mm.structs import Prompts


@dataclasses.dataclass(frozen=True)
class Sampling:
  """What is drawn.

  Attributes:
    samples_per_prompt: G.
    max_tokens: T, columns of the result.
    end_token: ends a row; it is drawn, scored and kept in the mask.
    pad_token: fills the columns behind it.
    image_token: id of the image placeholder.
    temperature, top_k, top_p: see `samplers.draw`.
    cache: "model" keeps keys and values in the dtype of the activations,
      "int8" in a quarter to half of the bytes, with an error.
  """

  samples_per_prompt: int
  max_tokens: int
  end_token: int
  pad_token: int
  image_token: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  cache: str = "model"


class Slots(NamedTuple):
  """A places and R slots, as they are between two segments.

  Attributes:
    cache: [L, A, K, S, E] of the places and [L, R, K, T, E] of the slots.
    prompt_mask: [A, S] true on real tokens of the prompt.
    prompt_hidden: [A, D] hidden state from which the first token is drawn.
    prompt_next: [A] or [A, 3] rotary position of the first token.
    hidden: [R, D] from which the next token is drawn.
    length: [R] tokens drawn so far.
    done: [R] true where the row has ended or the slot is empty.
  """

  cache: Cache
  prompt_mask: Bool[Array, "A S"]
  prompt_hidden: Float[Array, "A D"]
  prompt_next: Int[Array, "A ..."]
  hidden: Float[Array, "R D"]
  length: Int[Array, " R"]
  done: Bool[Array, " R"]


class Plan(NamedTuple):
  """What the slots do in the next segment.

  Attributes:
    fresh: [R] the slot starts a row.
    row: [R] number of its row, of which the key of its draws is made.
    limit: [R] most tokens of its row; 0 where the slot is empty.
    seats: which slots answer which place.
    leave_at: the segment ends early when so many slots are done.
  """

  fresh: Bool[Array, " R"]
  row: Int[Array, " R"]
  limit: Int[Array, " R"]
  seats: Seats
  leave_at: Int[Array, ""]


class Drawn(NamedTuple):
  """Tokens of one segment.

  Attributes:
    tokens, logp: [R, N], of which a slot drew the first `length - start`.
    start, length: [R] tokens of the row before and after the segment.
    done: [R] as in `Slots`.
    steps: how many were made.
  """

  tokens: Int[Array, "R N"]
  logp: Float[Array, "R N"]
  start: Int[Array, " R"]
  length: Int[Array, " R"]
  done: Bool[Array, " R"]
  steps: Int[Array, ""]


def empty(
  config: ModelConfig,
  sampling: Sampling,
  prompts: Prompts,
  places: int,
  slots: int,
  capacity: int,
) -> Slots:
  """No prompt and no row, for prompts of this form.

  Args:
    config: of the model.
    sampling: see `Sampling`.
    prompts: of which only shapes are read.
    places, slots: A and R.
    capacity: tokens a slot has room for.
  """
  d, dtype = config.decoder, jnp.dtype(config.dtype)
  tokens = prompts.tokens.shape[1]

  def cache(rows, length):
    shape = (d.layers, rows, d.kv_heads, length, d.head_dim)
    form = jax.eval_shape(lambda: _store(sampling, jnp.zeros(shape, dtype)))
    zeros = lambda x: jnp.zeros(x.shape, x.dtype)
    return _place_cache(jax.tree.map(zeros, form))

  axes = () if prompts.positions is None else prompts.positions.shape[2:]
  prompt, own = cache(places, tokens), cache(slots, capacity)
  return Slots(
    cache=Cache(prompt, prompt, own, own),
    prompt_mask=jnp.zeros((places, tokens), bool),
    prompt_hidden=jnp.zeros((places, d.width), dtype),
    prompt_next=jnp.zeros((places, *axes), jnp.int32),
    hidden=jnp.zeros((slots, d.width), dtype),
    length=jnp.zeros(slots, jnp.int32),
    done=jnp.ones(slots, bool),
  )


def prefill(
  config: ModelConfig,
  sampling: Sampling,
  params: vlm.Params,
  prompts: Prompts,
  slots: Slots,
  which: Int[Array, " F"],
  place: Int[Array, " F"],
) -> Slots:
  """Runs F of the prompts, pictures included, into places.

  Args:
    config, sampling, params: the model and what is drawn.
    prompts: all P prompts of the call.
    slots: whose places are filled.
    which: prompts to run, counted within their batch shard.
    place: where each goes, counted within its shard; A or more for nowhere.
  """
  prompts = jax.tree.map(lambda x: take_rows(x, which), prompts)
  positions, behind = vlm.positions(prompts, 1)
  features = None
  if prompts.images is not None:
    features = vlm.encode_images(config, params, prompts.images)
  x = vlm.embed(config, params, prompts.tokens, features, sampling.image_token)
  x = constrain(x, "batch", None, None)
  mask = Causal(prompts.mask)
  x, kv = vlm.run_decoder(config, params, x, positions, mask)
  put = lambda x, y: put_rows(x, place, y)
  put_layers = jax.vmap(put)
  k, v = (
    _place_cache(jax.tree.map(put_layers, old, _store(sampling, new)))
    for old, new in zip(slots.cache[:2], (jnp.swapaxes(y, 2, 3) for y in kv))
  )
  return slots._replace(
    cache=slots.cache._replace(prompt_k=k, prompt_v=v),
    prompt_mask=put(slots.prompt_mask, prompts.mask),
    prompt_hidden=put(slots.prompt_hidden, x[:, -1]),
    prompt_next=put(slots.prompt_next, behind[:, 0]),
  )


def decode(
  config: ModelConfig,
  sampling: Sampling,
  params: vlm.Params,
  slots: Slots,
  plan: Plan,
  key: PRNGKeyArray,
  steps: int,
) -> tuple[Slots, Drawn]:
  """Draws up to `steps` tokens in every slot that is not done.

  A token depends on its row's number, its place in the row and `key`, not on
  slot, segment or mesh.
  """
  slots = _begin(slots, plan)
  rows = slots.length.shape[0]
  row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, plan.row)
  weights = vlm.head(params).astype(slots.hidden.dtype)
  first = _of_seat(slots.prompt_next, plan.seats)

  def proceed(carry):
    step, slots, *_ = carry
    return (step < steps) & (jnp.sum(slots.done) < plan.leave_at)

  def body(carry):
    step, slots, tokens, logps = carry
    logits = jnp.einsum(
      "bd,vd->bv", slots.hidden, weights, preferred_element_type=jnp.float32
    )
    keys = jax.vmap(jax.random.fold_in)(row_keys, slots.length)
    token, logp = samplers.draw(
      keys,
      logits,
      temperature=sampling.temperature,
      top_k=sampling.top_k,
      top_p=sampling.top_p,
    )
    slots = _advance(config, sampling, params, slots, plan, first, token)
    write = lambda x, y: jax.lax.dynamic_update_slice(x, y[:, None], (0, step))
    return step + 1, slots, write(tokens, token), write(logps, logp)

  step, after, tokens, logp = jax.lax.while_loop(
    proceed,
    body,
    (
      jnp.zeros((), jnp.int32),
      slots,
      jnp.zeros((rows, steps), jnp.int32),
      jnp.zeros((rows, steps), jnp.float32),
    ),
  )
  drawn = Drawn(tokens, logp, slots.length, after.length, after.done, step)
  # Whole on every device: all processes plan the same.
  return after, jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), drawn)


def resize(
  slots: Slots,
  places: Int[Array, " A2"],
  rows: Int[Array, " R2"],
  capacity: int,
) -> Slots:
  """Keeps some places and slots, by number within their shard, and the room."""
  of_place = lambda x: take_rows(x, places)
  of_slot = lambda x: take_rows(x, rows)

  def own(x):
    length = x.shape[3]
    x = jax.vmap(of_slot)(x[:, :, :, : min(length, capacity)])
    room = [(0, 0)] * x.ndim
    room[3] = (0, capacity - x.shape[3])
    return jnp.pad(x, room)

  each = lambda f, x: _place_cache(jax.tree.map(f, x))
  prompt = jax.vmap(of_place)
  cache = slots.cache
  return Slots(
    cache=Cache(
      each(prompt, cache.prompt_k),
      each(prompt, cache.prompt_v),
      each(own, cache.k),
      each(own, cache.v),
    ),
    prompt_mask=of_place(slots.prompt_mask),
    prompt_hidden=of_place(slots.prompt_hidden),
    prompt_next=of_place(slots.prompt_next),
    hidden=of_slot(slots.hidden),
    length=of_slot(slots.length),
    done=of_slot(slots.done),
  )


def _begin(slots, plan):
  """Slots in which a row starts go to the end of its prompt."""
  hidden = _of_seat(slots.prompt_hidden, plan.seats)
  return slots._replace(
    hidden=jnp.where(plan.fresh[:, None], hidden, slots.hidden),
    length=jnp.where(plan.fresh, 0, slots.length),
    done=jnp.where(plan.fresh, False, slots.done) | (plan.limit == 0),
  )


def _of_seat(x, seats):
  """[A, ...] of places -> [R, ...] of the rows that sit there."""
  return take_rows(x, seats.seat // seats.row.shape[1])


def _advance(config, sampling, params, slots, plan, first, token):
  """Runs the drawn token through the decoder and keeps its keys and values."""
  k = jax.tree.leaves(slots.cache.k)[0]
  columns = jnp.arange(k.shape[3])
  mask = CacheMask(
    slots.prompt_mask, columns < slots.length[:, None], plan.seats
  )
  x = vlm.embed(config, params, token[:, None], None, sampling.image_token)
  # From length to one position, or to three.
  behind = slots.length.reshape(-1, *[1] * (first.ndim - 1))
  x, kv = vlm.run_decoder(
    config, params, x, (first + behind)[:, None], mask, slots.cache
  )
  rows = jnp.arange(token.shape[0])
  write = lambda x, y: x.at[:, rows, :, slots.length].set(
    jnp.swapaxes(y[:, :, 0], 0, 1)
  )
  k, v = (
    _place_cache(jax.tree.map(write, old, _store(sampling, new)))
    for old, new in zip(slots.cache[2:], kv)
  )
  length = slots.length + ~slots.done
  ended = (token == sampling.end_token) | (length >= plan.limit)
  return slots._replace(
    cache=slots.cache._replace(k=k, v=v),
    hidden=x[:, 0],
    length=length,
    done=slots.done | ended,
  )


def _store(sampling, x):
  """Keys or values in the form in which they are kept."""
  return attention.quantize(x) if sampling.cache == "int8" else x


def _place_cache(tree):
  """Rows and key heads of a cache over their mesh axes."""
  return jax.tree.map(
    lambda x: constrain(x, None, "batch", "kv_heads", *[None] * (x.ndim - 3)),
    tree,
  )
