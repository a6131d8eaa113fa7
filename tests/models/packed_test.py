"""Streams of tokens and back, against loops over rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import sharding
from jaxrl_mm.models import packed

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPT, ROOM = 3, 16
# Left-padded prompts of three columns, answers of up to three.
REAL = np.array(
  [
    [0, 1, 1, 1, 1, 0],
    [0, 1, 1, 1, 0, 0],
    [1, 1, 1, 1, 1, 1],
    [1, 1, 1, 0, 0, 0],
  ],
  bool,
)
GROUP = np.array([7, 7, 2, 2])
# (row, column) of each token: rows 1 and 3 bring no prompt of their own.
STREAM = [
  *((0, c) for c in (1, 2, 3, 4)),
  (1, 3),
  *((2, c) for c in range(6)),
]


@pytest.fixture(scope="module")
def p():
  return packed.plan(jnp.asarray(REAL), jnp.asarray(GROUP), PROMPT, ROOM)


def _rows(width=()):
  return np.random.default_rng(0).standard_normal((4, 6, *width), np.float32)


def test_a_stream_has_each_token_once_and_no_padding(p):
  x = _rows((2,))
  stream = packed.pack(jnp.asarray(x), p)
  assert stream.shape == (1, ROOM, 2)
  np.testing.assert_array_equal(
    stream[0, : len(STREAM)], [x[at] for at in STREAM]
  )
  assert p.filled.sum() == len(STREAM) and p.fits


def test_rows_get_back_their_tokens_and_the_prompt_of_their_group(p):
  x = _rows()
  x[1, :PROMPT], x[3, :PROMPT] = x[0, :PROMPT], x[2, :PROMPT]
  back = packed.unpack(packed.pack(jnp.asarray(x), p), p)
  np.testing.assert_array_equal(np.where(REAL, back, 0), np.where(REAL, x, 0))


def test_other_neighbours_bring_their_own_prompt():
  p = packed.plan(jnp.asarray(REAL), jnp.array([7, 2, 7, 2]), PROMPT, 20)
  assert p.filled.sum() == REAL.sum()


def test_tokens_without_room_are_told(p):
  smaller = packed.plan(jnp.asarray(REAL), jnp.asarray(GROUP), PROMPT, 10)
  assert p.fits and not smaller.fits


def test_gradients_are_those_of_plain_gathers(p):
  """By automatic differentiation of what pack and unpack compute."""
  place, source = (np.array(x) for x in (p.place, p.source))
  place[~REAL] = 0
  plain_unpack = lambda s: s[0][place] * REAL[..., None]
  plain_pack = lambda x: (
    x.reshape(-1, x.shape[-1])[source] * p.filled[..., None]
  )
  weights = _rows((2,))
  of_rows = lambda f, s: jnp.sum(weights * REAL[..., None] * jnp.sin(f(s)))
  stream = jnp.asarray(np.random.default_rng(1).random((1, ROOM, 2)))
  got = jax.grad(lambda s: of_rows(lambda s: packed.unpack(s, p), s))(stream)
  expected = jax.grad(lambda s: of_rows(plain_unpack, s))(stream)
  np.testing.assert_allclose(got, expected * p.filled[..., None], rtol=1e-5)
  of_stream = lambda f, x: jnp.sum(jnp.sin(f(x)) * stream * p.filled[..., None])
  x = jnp.asarray(_rows((2,)))
  got = jax.grad(lambda x: of_stream(lambda x: packed.pack(x, p), x))(x)
  expected = jax.grad(lambda x: of_stream(plain_pack, x))(x)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_no_pass_scatters(p):
  def f(x):
    return jnp.sum(packed.unpack(packed.pack(x, p), p) ** 2)

  text = str(jax.make_jaxpr(jax.grad(f))(jnp.asarray(_rows((2,)))))
  assert "gather" in text and "scatter" not in text


def test_on_a_mesh_each_shard_has_a_stream_of_its_own():
  mesh = sharding.make_mesh(2, 2, 2)
  real, group, x = np.tile(REAL, (4, 1)), np.tile(GROUP, 4), _rows((2,))
  x = np.concatenate([x + n for n in range(4)])

  @jax.jit
  def there_and_back(real, group, x):
    p = packed.plan(real, group, PROMPT, ROOM)
    stream = packed.pack(x, p)
    return stream, packed.unpack(stream, p)

  arrays = sharding.to_device((real, group, x), mesh)
  with jax.set_mesh(mesh):
    streams, back = there_and_back(*arrays)
    text = there_and_back.lower(*arrays).compile().as_text()
  for n, stream in enumerate(np.asarray(streams)):
    expected = [x[4 * n + row, column] for row, column in STREAM]
    np.testing.assert_array_equal(stream[: len(STREAM)], expected)
  own = real & np.tile(np.array([1, 0, 1, 0], bool), 4)[:, None]
  np.testing.assert_array_equal(back[own], x[own])
  assert "all-gather" not in text  # no token travels


def test_what_is_packed_may_be_whole_numbers(p):
  positions = jnp.broadcast_to(jnp.arange(6), (4, 6))
  stream = jax.jit(partial(packed.pack))(positions, p)
  assert stream[0, : len(STREAM)].tolist() == [column for _, column in STREAM]
