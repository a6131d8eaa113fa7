"""Whatever the schedule, the rows are those of `generate`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.sampling.decode import Sampling
from jaxrl_mm.sampling.generate import generate
from jaxrl_mm.sampling.schedule import Schedule, make_sampler
from jaxrl_mm.structs import Prompts

pytestmark = pytest.mark.usefixtures("quick_compile")

IMAGE, END, PAD = 31, 30, 29
PROMPTS, SAMPLES, TOKENS = 8, 4, 12
SAMPLING = Sampling(
  samples_per_prompt=SAMPLES,
  max_tokens=TOKENS,
  end_token=END,
  pad_token=PAD,
  image_token=IMAGE,
)
# Of 32 rows: few slots, short segments and caches that start too small.
SMALL = Schedule(slots=8, segment=3, block=2)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def prompts():
  """Words with a picture; every second prompt one token shorter."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, END, size=(PROMPTS, 7))
  tokens[:, 2:6] = IMAGE
  mask = np.arange(7) >= np.arange(PROMPTS)[:, None] % 2
  images = rng.integers(256, size=(PROMPTS, 1, 8, 8, 3))
  return Prompts(
    tokens=jnp.asarray(np.where(mask, tokens, 0)),
    mask=jnp.asarray(mask),
    images=jnp.asarray(images, jnp.uint8),
    group=jnp.arange(PROMPTS),
  )


@pytest.fixture(scope="module")
def params(params):
  """Weights with which the end token is likely, in some places."""
  embedder = params["embedder"]
  head = embedder["head"].at[END].multiply(2.5)
  return params | {"embedder": embedder | {"head": head}}


@pytest.fixture(scope="module")
def plain(tiny, params, prompts):
  """All rows at once."""
  run = jax.jit(lambda *x: generate(tiny, SAMPLING, *x))
  drawn = jax.tree.map(np.asarray, run(params, prompts, KEY))
  lengths = drawn.mask.sum(1)
  assert lengths.min() < 3 and lengths.max() == TOKENS
  return drawn


@pytest.fixture(scope="module")
def sample(tiny):
  return make_sampler(tiny, SAMPLING, SMALL)


def _equal(got, expected, atol=1e-5):
  np.testing.assert_array_equal(got.mask, expected.mask)
  np.testing.assert_array_equal(got.tokens, expected.tokens)
  np.testing.assert_allclose(got.logp, expected.logp, atol=atol)


def test_scheduled_rows_are_the_unscheduled_ones(
  sample, params, prompts, plain
):
  _equal(sample(params, prompts, KEY), plain)


def test_slots_segments_and_blocks_change_no_row(tiny, params, prompts, plain):
  """More slots than rows of a group but not of all, then all at once."""
  for schedule in (Schedule(11, 5, 4), Schedule(64, 2, 16)):
    got = make_sampler(tiny, SAMPLING, schedule)(params, prompts, KEY)
    _equal(got, plain)


def test_slots_are_cut_when_no_row_waits(tiny, params, prompts, plain):
  """32 slots become 8, and the rows that are left go on as before."""
  schedule = Schedule(slots=32, segment=1, block=16)
  got = make_sampler(tiny, SAMPLING, schedule)(params, prompts, KEY)
  _equal(got, plain)


def test_each_row_has_its_own_limit(sample, params, prompts, plain):
  limits = np.arange(PROMPTS * SAMPLES) % TOKENS + 1
  got = sample(params, prompts, KEY, limits=limits)
  lengths = np.minimum(plain.mask.sum(1), limits)
  np.testing.assert_array_equal(np.asarray(got.mask).sum(1), lengths)
  kept = np.asarray(got.mask)
  np.testing.assert_array_equal(got.tokens, np.where(kept, plain.tokens, PAD))
  np.testing.assert_allclose(got.logp, np.where(kept, plain.logp, 0), atol=1e-5)


def test_limits_out_of_range_are_told(sample, params, prompts):
  limits = np.full(PROMPTS * SAMPLES, TOKENS + 1)
  with pytest.raises(InputError, match="between 13 and 13 for 32 rows"):
    sample(params, prompts, KEY, limits=limits)


def test_tokens_are_heard_as_they_come(sample, params, prompts, plain):
  parts = {}
  sample(
    params,
    prompts,
    KEY,
    heard=lambda row, tokens: parts.setdefault(row, []).append(list(tokens)),
  )
  assert max(len(part) for part in parts.values()) > 1
  for row, part in parts.items():
    assert sum(part, []) == plain.tokens[row][plain.mask[row]].tolist()


def test_a_row_stops_where_it_is_told(tiny, params, prompts, plain):
  """After the first token below 4, seen from the tokens so far."""

  def stop(tokens, seen):
    assert not (tokens[:seen] < 4).any()
    small = np.flatnonzero(tokens < 4)
    return int(small[0]) + 1 if len(small) else None

  got = make_sampler(tiny, SAMPLING, SMALL, stop)(params, prompts, KEY)
  ended = 0
  for row in range(PROMPTS * SAMPLES):
    whole = plain.tokens[row][plain.mask[row]]
    keep = stop(whole, 0)
    ended += keep is not None
    mask = np.asarray(got.mask[row])
    np.testing.assert_array_equal(got.tokens[row][mask], whole[:keep])
    assert (np.asarray(got.tokens[row])[~mask] == PAD).all()
  assert ended > 3


def test_programs_are_not_compiled_again(sample, params, prompts, plain):
  """Another key has other lengths, and needs no other program."""
  sample(params, prompts, KEY)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name)
  )
  got = sample(params, prompts, jax.random.key(1))
  assert (np.asarray(got.tokens) != plain.tokens).any()
  assert not [name for name in compiled if "backend_compile" in name]


def test_the_mesh_changes_no_token(tiny, params, prompts, plain):
  mesh = sharding.make_mesh(2, 2, 2)
  with jax.set_mesh(mesh):
    weights = jax.device_put(params, param_shardings(mesh, params))
    on_mesh = sharding.to_device(prompts, mesh)
    sample = make_sampler(tiny, SAMPLING, Schedule(16, 4, 16))
    got = sample(weights, on_mesh, KEY)
  assert got.tokens.sharding.is_equivalent_to(sharding.rows(mesh), 2)
  _equal(got, plain, atol=3e-5)


def test_an_int8_cache_is_near(tiny, params, prompts, plain):
  """The first token sees no cache of its own; the rest are rounded."""
  rounded = dataclasses.replace(SAMPLING, cache="int8")
  got = make_sampler(tiny, rounded, SMALL)(params, prompts, KEY)
  tokens, mask = np.asarray(got.tokens), np.asarray(got.mask)
  np.testing.assert_array_equal(tokens[:, 0], plain.tokens[:, 0])
  # As far as both drew the same tokens, they were given nearly the same chance.
  same = np.logical_and.accumulate(tokens == plain.tokens, axis=1)
  same &= mask & plain.mask
  gap = np.abs(np.asarray(got.logp) - plain.logp)[same]
  assert same.mean() > 0.2
  assert 0 < gap.max() < 0.1
