"""Rows of tokens without their padding, a prompt that neighbours share once.

    rows   . p q   a b c        stream   p q a b c d r s t e f
           . p q   d . .
           r s t   e f .

All of a decoder but attention treats tokens one by one. It runs on a stream,
which holds every real token once; attention alone sees whole rows. What a
group of G answers to one prompt costs is S + G T tokens instead of G (S + T),
and answers cost what they are long.

Both ways between rows and streams are gathers, in the backward pass too: a
scatter would be slow on TPUs and its sums in no fixed order on GPUs.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from jaxrl_mm import sharding


class Packing(NamedTuple):
  """Where the tokens of rows stand in streams, one stream a batch shard.

  Numbers count within a shard, so that no token travels.

  Attributes:
    real: [B, W] false on padding.
    brings: [B, S] true where the row itself brings its prompt's token to the
      stream; a row before it brings the others.
    holder: [B] the row of the shard that brings a row's prompt.
    place: [B, W] where a token stands in the stream.
    source: [N, C] where a token of the stream stands in the shard's rows, laid
      end to end.
    filled: [N, C] false behind the last token of a stream.
    fits: whether each shard's tokens found room.
  """

  real: Bool[Array, "B W"]
  brings: Bool[Array, "B S"]
  holder: Int[Array, " B"]
  place: Int[Array, "B W"]
  source: Int[Array, "N C"]
  filled: Bool[Array, "N C"]
  fits: Bool[Array, ""]

  @property
  def own(self) -> Bool[Array, "B W"]:
    """True where the row itself brings a token."""
    answers = self.real[:, self.brings.shape[1] :]
    return jnp.concatenate([self.brings, answers], axis=1)


def plan(
  real: Bool[Array, "B W"], group: Int[Array, " B"], prompt: int, room: int
) -> Packing:
  """Streams that hold each real token of the rows once.

  Args:
    real: false on padding.
    group: neighbours with the same number have the same prompt.
    prompt: S, columns of the prompt.
    room: C, tokens of a shard's stream.
  """
  of_shard = jax.vmap(partial(_of_shard, prompt, room))
  brings, holder, place, source, count = of_shard(_split(real), _split(group))
  return Packing(
    real,
    *(_merge(x) for x in (brings, holder, place)),
    source,
    jnp.arange(room) < count[:, None],
    jnp.all(count <= room),
  )


def _of_shard(prompt, room, real, group):
  number = jnp.arange(len(group))
  repeats = (group == jnp.roll(group, 1)) & (number > 0)
  holder = jax.lax.cummax(jnp.where(repeats, 0, number))
  in_prompt = jnp.arange(real.shape[1]) < prompt
  own = real & ~(repeats[:, None] & in_prompt)
  count = jnp.cumsum(own)
  place = jnp.clip(count.reshape(own.shape) - 1, 0, room - 1)
  place = jnp.where(in_prompt, place[holder], place)
  source = jnp.searchsorted(count, jnp.arange(1, room + 1))
  return (
    own[:, :prompt],
    holder,
    place,
    jnp.minimum(source, own.size - 1),
    count[-1],
  )


@jax.custom_vjp
def pack(x: Shaped[Array, "B W *rest"], p: Packing) -> Shaped[Array, "N C ..."]:
  """Streams of what rows hold; anything behind a stream's last token."""
  of_shards = x.reshape(len(p.source), -1, *x.shape[2:])
  return jax.vmap(lambda x, i: x[i])(of_shards, p.source)


@jax.custom_vjp
def unpack(
  x: Shaped[Array, "N C *rest"], p: Packing
) -> Shaped[Array, "B W ..."]:
  """Rows of what streams hold; anything at their padding."""
  rows = jax.vmap(lambda x, i: x[i])(x, p.place.reshape(len(x), -1))
  return rows.reshape(*p.place.shape, *x.shape[2:])


def _pack_back(p, gradient):
  return _where(p.own, unpack(gradient, p)), None


def _unpack_back(p, gradient):
  """A prompt's token gathers what all rows that see it say."""
  brings = jax.nn.one_hot(
    _split(p.holder), _split(p.holder).shape[1], dtype=gradient.dtype
  )
  repeated = _where(p.real & ~p.own, gradient)
  repeated = jnp.einsum(
    "nsr,nsw...->nrw...",
    brings,
    _split(repeated),
    preferred_element_type=jnp.float32,
  )
  total = _where(p.own, gradient) + _merge(repeated).astype(gradient.dtype)
  return _where(p.filled, pack(total, p)), None


pack.defvjp(lambda x, p: (pack(x, p), p), _pack_back)
unpack.defvjp(lambda x, p: (unpack(x, p), p), _unpack_back)


def _where(mask, x):
  """Zeros where the mask of the leading axes is false."""
  return jnp.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), x, 0)


def _split(x):
  """[B, ...] -> [shards, B / shards, ...]."""
  return x.reshape(sharding.batch_shards(), -1, *x.shape[1:])


def _merge(x):
  """The way back."""
  return x.reshape(-1, *x.shape[2:])
