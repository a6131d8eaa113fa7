"""Micro-batches by their tokens give the same gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import sharding
from jaxrl_mm.models import packed
from jaxrl_mm.structs import Demonstrations, Pairs, Prompts, Trajectories
from jaxrl_mm.train import micro_batches
from jaxrl_mm.train.step import accumulate_gradients, map_rows

pytestmark = pytest.mark.usefixtures("quick_compile")

LONGEST, PROMPT = 10, 3
ENDS = np.array([9, 2, 5, 1, 10, 3, 2, 0])
ROWS = len(ENDS)
GROUP = np.array([5, 5, 5, 8, 8, 1, 1, 2])
TABLE = jnp.asarray(np.random.default_rng(0).standard_normal(7, np.float32))
# Prompts of two tokens: 2 + 9 and 2 more are 13, with 5 it would be 18.
FIRST = [0, 2, 4, 5, 8, 8, 8, 8, 8]
ROOM, MOST = 14, 3


def _prompts(group=GROUP):
  tokens = np.ones((len(group), PROMPT), np.int32)
  mask = np.broadcast_to(np.arange(PROMPT) >= 1, tokens.shape)
  return Prompts(tokens, mask, None, group)


def _tokens(shape):
  return np.random.default_rng(1).integers(7, size=shape).astype(np.int32)


def _demonstrations():
  mask = np.arange(LONGEST) < ENDS[:, None]
  return Demonstrations(_prompts(), _tokens(mask.shape), mask)


def _pairs():
  mask = np.arange(LONGEST) < ENDS.reshape(4, 2, 1)
  logp = np.arange(8, dtype=np.float32).reshape(4, 2)
  return Pairs(_prompts(np.arange(4)), _tokens(mask.shape), mask, logp)


def _trajectories():
  d, row = _demonstrations(), np.arange(ROWS, dtype=np.float32)
  logp = np.linspace(-1, 0, ROWS * LONGEST, dtype=np.float32)
  logp = logp.reshape(ROWS, LONGEST)
  return Trajectories(
    *(d.tokens, d.mask, logp, GROUP, row, row),
    advantages=row,
    prompts=d.prompts,
  )


def test_rows_come_together_until_the_next_finds_no_room():
  """By hand: 2+9, 2 | 2+5, 1 of a new prompt would be 15 | ..."""
  first = micro_batches.starts(_demonstrations(), MOST, ROOM)
  sizes = []
  for begin, end in zip(FIRST, FIRST[1:]):
    prompts = len(dict.fromkeys(GROUP[begin:end])) * 2
    sizes.append(prompts + ENDS[begin:end].sum())
  assert sizes[:4] == [13, 10, 12, 9]
  np.testing.assert_array_equal(first, [FIRST])
  assert micro_batches.count(first) == 4


def test_what_is_put_together_fills_the_stream_it_was_counted_for():
  """As `packed.plan` lays the rows, whose rule is the same."""
  rng = np.random.default_rng(2)
  ends = rng.integers(LONGEST + 1, size=(40, 1))
  group = np.sort(rng.integers(9, size=40))
  mask = np.arange(LONGEST) < ends
  batch = Demonstrations(_prompts(group), _tokens(mask.shape), mask)
  batch = jax.tree.map(jnp.asarray, batch)
  first = micro_batches.starts(batch, 5, 30)
  for number in range(int(micro_batches.count(first))):
    rows = micro_batches.take(batch, first, jnp.int32(number), 5)
    real = jnp.concatenate([rows.prompts.mask, rows.mask], axis=1)
    p = packed.plan(real, rows.prompts.group, PROMPT, 30)
    begin, end = first[0, number : number + 2].tolist()
    prompts = len(set(group[begin:end].tolist()))
    assert p.fits and p.filled.sum() == 2 * prompts + ends[begin:end].sum()
    more = ends[end].item() if end < 40 else 99
    again = 0 if end < 40 and group[end] == group[end - 1] else 2
    assert end - begin == 5 or p.filled.sum() + again + more > 30


def test_no_more_rows_than_there_are_places_for():
  first = micro_batches.starts(_demonstrations(), 1, 1000)
  np.testing.assert_array_equal(first, [np.arange(ROWS + 1)])


def test_both_completions_of_a_pair_stay_with_its_prompt():
  """By hand: 2 + 9 + 2 | 2 + 5 + 1 | 2 + 10 + 3 | 2 + 2 + 0."""
  first = micro_batches.starts(_pairs(), 4, 15)
  np.testing.assert_array_equal(first, [[0, 1, 2, 3, 4]])
  first = micro_batches.starts(_pairs(), 4, 21)
  np.testing.assert_array_equal(first, [[0, 2, 4, 4, 4]])


def test_rows_that_pad_a_micro_batch_have_no_token():
  batch = jax.tree.map(jnp.asarray, (_trajectories(), np.arange(ROWS)))
  first = micro_batches.starts(batch, MOST, ROOM)
  for number, (begin, end) in enumerate(zip(FIRST[:4], FIRST[1:])):
    t, index = micro_batches.take(batch, first, jnp.int32(number), MOST)
    rows = np.minimum(np.arange(begin, begin + MOST), end - 1)
    np.testing.assert_array_equal(index, rows)
    np.testing.assert_array_equal(
      t.mask.sum(1), ENDS[rows] * (np.arange(MOST) < end - begin)
    )


def _loss(table, batch):
  """A mean over tokens that looks at all there is."""
  rows = batch[0] if isinstance(batch[0], Trajectories) else batch
  logp = jax.nn.log_softmax(table)[rows.tokens]
  if isinstance(rows, Trajectories):
    logp = logp * (rows.advantages[:, None] + rows.logp)
  elif isinstance(rows, Pairs):
    logp = logp * rows.reference_logp[..., None]
  count = jnp.sum(rows.mask, dtype=jnp.float32)
  loss = -jnp.sum(jnp.where(rows.mask, logp, 0)) / jnp.maximum(count, 1)
  return loss, count, {"double": 2 * loss}


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
  "batch",
  [_demonstrations(), _pairs(), (_trajectories(), np.arange(ROWS) % 2 == 0)],
  ids=["demonstrations", "pairs", "trajectories"],
)
def test_the_gradient_is_that_of_whole_rows(batch, devices):
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  with jax.set_mesh(mesh):
    rows = sharding.to_device(batch, mesh)
    step = jax.jit(accumulate_gradients, static_argnums=(0, 3, 4))
    whole = step(_loss, TABLE, rows, 2, 0)
    packed = step(_loss, TABLE, rows, 3, 17)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    packed,
    whole,
  )


@pytest.mark.parametrize("devices", [1, 2])
def test_every_row_is_mapped_once_to_its_place(devices):
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  f = lambda rows: (rows.mask.sum(1), rows.tokens[:, 0] + rows.prompts.group)
  batch = _demonstrations()
  with jax.set_mesh(mesh):
    rows = sharding.to_device(batch, mesh)
    got = jax.jit(lambda rows: map_rows(f, rows, MOST, ROOM))(rows)
  for a, b in zip(got, f(batch)):
    np.testing.assert_array_equal(a, b)
