"""The Selective Sample Buffer: what goes in, what comes out, how often."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_mm import algorithms, sharding
from jaxrl_mm.algorithms.replay import EMPTY
from jaxrl_mm.structs import Trajectories

ALPHA_1 = np.load(Path(__file__).parents[1] / "golden" / "mpo_grpo.npz")


def rows(advantages, first=0, group=None, verifiable=None, mask=None):
  """Rows whose tokens are their numbers, one group for all by default."""
  advantages = jnp.asarray(advantages, jnp.float32)
  size = advantages.shape[0]
  mask = jnp.ones((size, 2), bool) if mask is None else jnp.asarray(mask)
  names = first + jnp.arange(size)
  outcome = jnp.arange(size) % 2 if verifiable is None else verifiable
  return Trajectories(
    tokens=jnp.repeat(names[:, None], 2, axis=1),
    mask=mask,
    logp=-jnp.repeat(names[:, None], 2, axis=1).astype(jnp.float32),
    group=jnp.zeros(size, int) if group is None else jnp.asarray(group),
    rewards=advantages.reshape(size, -1)[:, 0],
    verifiable=jnp.asarray(outcome, jnp.float32),
    advantages=advantages,
    prompts={"ids": names},
  )


def start(capacity, batch, **settings):
  buffer = algorithms.selective_sample_buffer(capacity, **settings)
  return jax.jit(buffer.update), buffer.init(batch)


def held(state):
  """Numbers of the rows in the buffer."""
  return sorted(np.asarray(state.rows.tokens[state.born != EMPTY, 0]).tolist())


NOTHING = np.zeros(4)


def test_an_empty_buffer_changes_nothing():
  batch = rows([1.0, 0.0, -2.0, 0.0])
  update, state = start(8, batch)
  mixed, state = update(batch, state)
  jax.tree.map(np.testing.assert_array_equal, mixed, batch)
  assert held(state) == [0, 2]
  assert float(state.effective_before) == float(state.effective_after) == 0.5


def test_rows_without_advantage_are_replaced_as_a_whole():
  update, state = start(8, rows(NOTHING))
  _, state = update(rows([1.0, 0.0, -2.0, 0.0], first=10), state)
  mixed, state = update(rows([0.0, 5.0, 0.0, 7.0], first=20), state)
  names = np.asarray(mixed.tokens[:, 0])
  np.testing.assert_array_equal(state.replayed, [True, False, True, False])
  assert set(names[[0, 2]]) == {10, 12} and list(names[[1, 3]]) == [21, 23]
  for row, name in enumerate(names):
    assert mixed.prompts["ids"][row] == name
    assert (mixed.logp[row] == -name).all()
  expected = {10: 1.0, 12: -2.0, 21: 5.0, 23: 7.0}
  assert [expected[n] for n in names] == np.asarray(mixed.advantages).tolist()
  assert float(state.effective_before) == 0.5
  assert float(state.effective_after) == 1.0
  assert held(state) == [10, 12, 21, 23]


@pytest.mark.parametrize("exponent", [0, 1.0, 2])
def test_draws_follow_the_priority(exponent):
  """Chi-square of many single draws against |A|^exponent."""
  advantages = np.array([0.5, -1.0, 2.0, -0.25, 1.5, 0.75])
  update, state = start(6, rows(np.zeros(6)), priority_exponent=exponent)
  _, state = update(rows(advantages), state)
  one = rows(np.zeros(6), first=100)

  def draw(state, _):
    mixed, state = update(one, state)
    return state, mixed.tokens[:, 0]

  _, drawn = jax.lax.scan(draw, state, None, length=4000)
  first = np.bincount(np.asarray(drawn[:, 0]), minlength=6)
  weight = np.abs(advantages) ** exponent
  expected = 4000 * weight / weight.sum()
  assert scipy.stats.chisquare(first, expected).pvalue > 1e-3
  # Six rows to replace and six held: each is drawn once.
  np.testing.assert_array_equal(np.sort(drawn, axis=1), [range(6)] * 4000)


def test_draws_beyond_the_held_rows_follow_the_priority_too():
  advantages = np.array([0.5, -1.0, 2.0, 0.0])
  update, state = start(4, rows(np.zeros(4)))
  _, state = update(rows(advantages), state)
  many = rows(np.zeros(3000))
  mixed, _ = update(many, state)
  drawn = np.asarray(mixed.tokens[:, 0])
  assert sorted(drawn[:3]) == [0, 1, 2]
  count = np.bincount(drawn[3:], minlength=4)
  assert count[3] == 0
  expected = 2997 * np.array([0.5, 1, 2]) / 3.5
  assert scipy.stats.chisquare(count[:3], expected).pvalue > 1e-3


def test_draws_follow_the_oracles_weights():
  advantages = ALPHA_1["adv/advantages_scale_group"]
  weights = ALPHA_1["ssb/p_alpha1.0"]
  update, state = start(48, rows(np.zeros(48)))
  group = np.repeat(np.arange(6), 8)
  _, state = update(rows(advantages, group=group), state)
  assert len(held(state)) == (weights > 0).sum()
  batch = rows(np.zeros(48))

  def draw(state, _):
    mixed, state = update(batch, state)
    return state, mixed.tokens[0, 0]

  _, drawn = jax.lax.scan(draw, state, None, length=4000)
  count = np.bincount(np.asarray(drawn), minlength=48)
  used = weights > 0
  assert count[~used].sum() == 0
  test = scipy.stats.chisquare(count[used], 4000 * weights[used])
  assert test.pvalue > 1e-3


def test_a_huge_exponent_neither_overflows_nor_repeats():
  update, state = start(4, rows(NOTHING), priority_exponent=60)
  _, state = update(rows([1e3, 1e-3, 2e3, 1e2]), state)
  mixed, _ = update(rows(NOTHING), state)
  assert sorted(np.asarray(mixed.tokens[:, 0]).tolist()) == [0, 1, 2, 3]


def test_the_stalest_leave_first():
  update, state = start(5, rows(NOTHING))
  for first in (0, 10, 20):
    _, state = update(rows([1.0, 0.0, 1.0, 0.0], first), state)
  assert len(held(state)) == 5
  assert set(held(state)) >= {10, 12, 20, 22}
  _, state = update(rows([1.0, 1.0, 1.0, 1.0], 30), state)
  assert set(held(state)) >= {30, 31, 32, 33}


def test_more_effective_rows_than_slots():
  update, state = start(3, rows(NOTHING))
  mixed, state = update(rows([1.0, 2.0, 3.0, 4.0]), state)
  np.testing.assert_array_equal(mixed.advantages, [1, 2, 3, 4])
  assert len(held(state)) == 3


def test_rows_older_than_max_age_are_never_drawn():
  update, state = start(8, rows(NOTHING), max_age=2)
  _, state = update(rows([1.0, 1.0, 1.0, 1.0]), state)
  for age in (1, 2, 3):
    mixed, state = update(rows(NOTHING, first=50), state)
    old = np.asarray(mixed.tokens[:, 0]) < 50
    assert old.all() if age <= 2 else not old.any()
  assert held(state) == []


def test_groups_are_judged_by_their_verifiable_reward():
  group = [9, -3, 9, -3, 5, 5]
  verifiable = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
  batch = rows(np.ones(6), group=group, verifiable=verifiable)
  effective = algorithms.effective_rows(batch)
  np.testing.assert_array_equal(effective, np.equal(group, -3))


def test_a_row_alone_in_its_group_is_judged_by_its_advantage():
  batch = rows([1.0, 0.0, -1.0, 2.0], group=[0, 1, 2, 3])
  effective = algorithms.effective_rows(batch)
  np.testing.assert_array_equal(effective, [True, False, True, True])


def test_what_is_no_number_and_what_is_empty_stays_out():
  mask = np.array([[True, True], [True, False], [True, True], [False, False]])
  batch = rows([1.0, np.nan, np.inf, 1.0], mask=mask)
  update, state = start(4, batch)
  _, state = update(batch, state)
  assert held(state) == [0]
  assert np.isfinite(state.priority).all()


def test_advantages_per_token():
  advantages = [[1.0, -3.0], [0.0, 0.0], [0.0, 4.0], [0.0, 0.0]]
  mask = np.array([[True, True], [True, True], [False, True], [True, True]])
  update, state = start(4, rows(NOTHING), per_token=True)
  _, state = update(rows(advantages, mask=mask), state)
  np.testing.assert_allclose(np.sort(state.priority), [0, 0, 2, 4])
  mixed, _ = update(rows(np.zeros((4, 2)), mask=mask), state)
  assert mixed.advantages.shape == (4, 2) and mixed.advantages.any(1).all()
  with pytest.raises(ValueError, match="per_token=True"):
    update, state = start(4, rows(NOTHING))
    update(rows(advantages), state)


def test_other_fields_than_those_of_init_are_an_error():
  update, state = start(4, rows(NOTHING))
  with pytest.raises(ValueError, match="optional field"):
    update(rows(NOTHING)._replace(prompts=None), state)
  with pytest.raises(ValueError, match="at least 1"):
    algorithms.selective_sample_buffer(0)


def test_replay_of_vl_rethinker_holds_half_a_batch():
  replay = algorithms.selective_sample_replay(6)
  assert replay.init(rows(NOTHING)).born.shape == (3,)


def test_it_is_a_link_of_an_optax_chain():
  chain = optax.chain(
    algorithms.advantages_from_rewards(),
    algorithms.center_by_group(),
    algorithms.selective_sample_buffer(4),
  )
  batch = rows([1.0, 1.0, 0.0, 0.0], verifiable=[1.0, 1.0, 0.0, 0.0])
  _, state = chain.update(batch, chain.init(batch))
  assert held(state[-1]) == [0, 1, 2, 3]


PICTURE = 7, 5, 3


def with_pictures(number, size=16):
  """A batch of which about half has no advantage."""
  rng = np.random.default_rng(number)
  advantages = rng.standard_normal(size) * (rng.random(size) < 0.5)
  pictures = rng.integers(0, 256, (size, *PICTURE)).astype(np.uint8)
  batch = rows(advantages, first=number * size)
  return batch._replace(prompts={"images": jnp.asarray(pictures)})


def test_on_a_mesh_no_device_ever_has_all_rows(quick_compile, monkeypatch):
  """Where they are large; and the bits are those of one device."""
  del quick_compile
  monkeypatch.setattr(sharding, "MOVED_BYTES", 1)
  mesh = sharding.make_mesh(2, 2, 2)
  batches = [with_pictures(number) for number in range(3)]
  buffer = algorithms.selective_sample_buffer(32)
  alone, one = jax.jit(buffer.update), buffer.init(batches[0])
  whole, cut = sharding.replicated(mesh), sharding.rows(mesh)
  layout = jax.tree.map(lambda _: whole, one)._replace(
    rows=jax.tree.map(lambda _: cut, one.rows)
  )
  several = jax.device_put(one, layout)
  with jax.set_mesh(mesh):
    update = jax.jit(
      buffer.update, donate_argnums=1, out_shardings=(cut, layout)
    )
    there = jax.device_put(batches, cut)
    program = update.lower(there[0], several).compile()
    for batch, placed in zip(batches, there):
      expected, one = alone(batch, one)
      mixed, several = program(placed, several)
      jax.tree.map(np.testing.assert_array_equal, mixed, expected)
  assert several.replayed.sum() > 4
  jax.tree.map(np.testing.assert_array_equal, several.rows, one.rows)
  # Eight of the buffer are kept by a device, and four come at a time.
  shapes = re.findall(r"\bu8\[([\d,]+)\]", program.as_text())
  largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
  assert largest == 8 * math.prod(PICTURE)


UPDATES = {
  capacity: jax.jit(algorithms.selective_sample_buffer(capacity).update)
  for capacity in (1, 5, 12)
}
BATCHES = st.lists(
  st.lists(st.sampled_from([0.0, 0.0, 1.0, -0.5, 3.0]), min_size=4, max_size=4),
  min_size=1,
  max_size=6,
)


@settings(max_examples=30, deadline=None)
@given(capacity=st.sampled_from(sorted(UPDATES)), batches=BATCHES)
def test_whatever_the_batches(capacity, batches):
  """No row is lost while there is room, none comes from nowhere."""
  buffer = algorithms.selective_sample_buffer(capacity)
  state, entered = buffer.init(rows(NOTHING)), []
  for number, advantages in enumerate(batches):
    batch = rows(advantages, first=4 * number)
    before = held(state)
    mixed, state = UPDATES[capacity](batch, state)
    names = np.asarray(mixed.tokens[:, 0]).tolist()
    fresh = np.asarray(advantages) != 0
    assert [n for n, f in zip(names, fresh) if f] == [
      4 * number + i for i in range(4) if fresh[i]
    ]
    replaced = [n for n, f in zip(names, fresh) if not f]
    if before:
      assert set(replaced) <= set(before) and mixed.advantages.all()
      assert len(set(replaced)) == min(len(replaced), len(before))
    entered += [4 * number + i for i in range(4) if fresh[i]]
    assert len(held(state)) == min(len(entered), capacity)
    assert set(held(state)) <= set(entered)
    assert state.born.shape == (capacity,)
