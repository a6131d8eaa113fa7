"""Micro-batches that are cut to their longest row give the same gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import sharding
from jaxrl_mm.structs import Demonstrations, Pairs, Prompts, Trajectories
from jaxrl_mm.train import lengths
from jaxrl_mm.train.step import accumulate_gradients

pytestmark = pytest.mark.usefixtures("quick_compile")

LONGEST = 10
ENDS = np.array([9, 2, 5, 1, 10, 3, 2, 0])
ROWS = len(ENDS)
TABLE = jnp.asarray(np.random.default_rng(0).standard_normal(7, np.float32))


def _prompts(rows=ROWS):
  two = np.ones((rows, 2), np.int32)
  return Prompts(two, two.astype(bool), None, np.arange(rows))


def _tokens(shape):
  return np.random.default_rng(1).integers(7, size=shape).astype(np.int32)


def _demonstrations():
  mask = np.arange(LONGEST) < ENDS[:, None]
  return Demonstrations(_prompts(), _tokens(mask.shape), mask)


def _pairs():
  mask = np.arange(LONGEST) < ENDS.reshape(4, 2, 1)
  logp = np.arange(8, dtype=np.float32).reshape(4, 2)
  return Pairs(_prompts(4), _tokens(mask.shape), mask, logp)


def _trajectories(advantages):
  d = _demonstrations()
  row = np.arange(ROWS, dtype=np.float32)
  logp = np.linspace(-1, 0, ROWS * LONGEST, dtype=np.float32)
  logp = logp.reshape(ROWS, LONGEST)
  return Trajectories(
    *(d.tokens, d.mask, logp, np.arange(ROWS), row, row),
    advantages=row if advantages == 1 else logp,
    prompts=d.prompts,
    reference_logp=2 * logp,
  )


def test_bounds_are_equal_steps_up_to_the_whole():
  assert lengths.bounds(10, 4) == (3, 5, 8, 10)
  assert lengths.bounds(10, 1) == (10,)


def test_short_rows_come_first_and_those_of_a_bound_keep_their_order():
  rows = jax.tree.map(jnp.asarray, _demonstrations())
  sorted_ = lengths.sort_rows(rows, 4)
  assert sorted_.mask.sum(1).tolist() == [2, 1, 3, 2, 0, 5, 9, 10]
  assert sorted_.prompts.group.tolist() == [1, 3, 5, 6, 7, 2, 0, 4]


def test_each_shard_sorts_its_own_rows():
  mesh = sharding.make_mesh(devices=jax.devices()[:2])
  with jax.set_mesh(mesh):
    rows = sharding.to_device(_demonstrations(), mesh)
    sorted_ = jax.jit(lengths.sort_rows, static_argnums=1)(rows, 4)
  assert sorted_.mask.sum(1).tolist() == [2, 1, 5, 9, 3, 2, 0, 10]


@pytest.mark.parametrize("advantages", [1, 2])
def test_what_has_an_entry_a_token_is_cut_and_nothing_else(advantages):
  t = jax.tree.map(lambda x: jnp.asarray(x[1:4]), _trajectories(advantages))
  replayed = jnp.zeros(3, bool)
  cut, same = lengths.at_its_length(lambda x: x, (t, replayed), 1)
  assert cut.tokens.shape == (3, LONGEST) and same is replayed
  seen = []

  def look(batch):
    seen.append(jax.tree.map(jnp.shape, batch[0]))
    return jnp.sum(batch[0].mask)

  assert lengths.at_its_length(look, (t, replayed), 4) == 2 + 5 + 1
  for shape, bound in zip(seen, (3, 5, 8, 10), strict=True):
    by_token = shape.tokens, shape.mask, shape.logp, shape.reference_logp
    assert by_token == ((3, bound),) * 4
    assert shape.advantages == ((3,) if advantages == 1 else (3, bound))
    assert shape.prompts.tokens == (3, 2) and shape.rewards == (3,)


def _loss(table, batch):
  """A mean over tokens that looks at all of what is cut."""
  rows = batch[0] if isinstance(batch[0], Trajectories) else batch
  logp = jax.nn.log_softmax(table)[rows.tokens]
  if isinstance(rows, Trajectories):
    logp = logp * (rows.advantages.reshape(len(logp), -1) + rows.logp)
  elif isinstance(rows, Pairs):
    logp = logp * rows.reference_logp[..., None]
  count = jnp.sum(rows.mask, dtype=jnp.float32)
  loss = -jnp.sum(jnp.where(rows.mask, logp, 0)) / jnp.maximum(count, 1)
  # What the branch was given shows in the metrics.
  return loss, count, {"columns": jnp.float32(rows.tokens.shape[-1])}


@pytest.mark.parametrize(
  "batch",
  [
    _demonstrations(),
    _pairs(),
    (_trajectories(1), np.arange(ROWS) % 2 == 0),
    (_trajectories(2), np.arange(ROWS) % 2 == 0),
  ],
  ids=["demonstrations", "pairs", "trajectories", "advantages of tokens"],
)
def test_the_gradient_is_that_of_whole_rows(batch):
  batch = jax.tree.map(jnp.asarray, batch)
  step = jax.jit(accumulate_gradients, static_argnums=(0, 3, 4))
  gradient, loss, told = step(_loss, TABLE, batch, 2, 1)
  shorter = step(_loss, TABLE, batch, 2, 4)
  np.testing.assert_allclose(shorter[0], gradient, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(shorter[1], loss, rtol=1e-5)
  assert told["columns"] == LONGEST > shorter[2]["columns"]


def test_columns_that_were_worked_on():
  """By hand: rows of 2, 1 and 3, 2 tokens at 3; 0, 5 at 5; 9, 10 at 10."""
  batch = jax.tree.map(jnp.asarray, _demonstrations())
  *_, told = accumulate_gradients(_loss, TABLE, batch, 2, 4)
  counted = 3 * (2 + 1) + 3 * (3 + 2) + 5 * (0 + 5) + 10 * (9 + 10)
  np.testing.assert_allclose(told["columns"], counted / ENDS.sum(), rtol=1e-6)
