"""Group baselines against TRL and R1-Reward, and by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_mm import algorithms
from jaxrl_mm.algorithms.groups import group_stats
from jaxrl_mm.structs import Trajectories

GOLDEN = Path(__file__).parents[1] / "golden"
TRL = np.load(GOLDEN / "mpo_grpo.npz")
R1 = np.load(GOLDEN / "stable_reinforce.npz")


def rows(rewards, group, mask=None, verifiable=None):
  rewards = jnp.asarray(rewards)
  mask = jnp.ones((len(rewards), 2), bool) if mask is None else mask
  return Trajectories(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    mask=jnp.asarray(mask),
    logp=jnp.zeros(mask.shape),
    group=jnp.asarray(group),
    rewards=rewards,
    verifiable=rewards if verifiable is None else jnp.asarray(verifiable),
    advantages=jnp.zeros(len(rewards)),
  )


def advantages(trajectories, *transforms):
  chain = optax.chain(algorithms.advantages_from_rewards(), *transforms)
  return chain.update(trajectories, chain.init(trajectories))[0].advantages


def test_group_scaling_is_trls():
  with jax.enable_x64(True):
    t = rows(TRL["adv/rewards_total"], np.repeat(np.arange(6), 8))
    result = advantages(
      t, algorithms.center_by_group(), algorithms.scale_by_group_std()
    )
    stats = group_stats(t.rewards, t.group, jnp.ones(48, bool), ddof=1)
  expected = TRL["adv/advantages_scale_group"]
  np.testing.assert_allclose(result, expected, 1e-7, 1e-7)
  np.testing.assert_allclose(stats.std, TRL["adv/std_group"], 1e-7, 1e-12)
  np.testing.assert_array_equal(~stats.varies, TRL["adv/is_std_zero"])
  zero = np.asarray(result) == 0
  np.testing.assert_array_equal(zero, TRL["adv/is_std_zero"])


@pytest.mark.parametrize(
  "case, transform",
  [
    ("rloo", algorithms.leave_one_out()),
    ("reinforce_baseline", algorithms.center_by_group()),
  ],
)
def test_baselines_are_those_of_r1_reward(case, transform):
  case = f"reward_shaping_{case}/"
  t = rows(R1[case + "in/rewards"], np.repeat(np.arange(3), 4))
  np.testing.assert_allclose(
    advantages(t, transform), R1[case + "out/shaped"], 1e-5, 1e-6
  )


def test_rows_of_a_group_may_lie_anywhere():
  t = rows([1.0, 10.0, 3.0, 30.0, 7.0], [7, -2, 7, -2, 1000000])
  result = advantages(t, algorithms.center_by_group())
  np.testing.assert_allclose(result, [-1, -10, 1, 10, 0])
  result = advantages(t, algorithms.leave_one_out())
  np.testing.assert_allclose(result, [-2, -20, 2, 20, 0])


def test_divisor_has_the_chosen_ddof():
  t = rows([0.0, 2.0, 4.0], [0, 0, 0])
  for ddof in (0, 1):
    scale = algorithms.scale_by_group_std(eps=0.0, ddof=ddof)
    result = advantages(t, algorithms.center_by_group(), scale)
    expected = np.array([-2, 0, 2]) / np.std([0, 2, 4], ddof=ddof)
    np.testing.assert_allclose(result, expected, 1e-6)


def test_empty_rows_count_nowhere():
  mask = np.array([[True, False], [True, True], [False, False]])
  t = rows([0.0, 1.0, 50.0], [0, 0, 0], mask)
  result = advantages(t, algorithms.center_by_group())
  np.testing.assert_allclose(result, [-0.5, 0.5, 0])


def test_equal_floats_have_zero_advantage_exactly():
  t = rows(np.full(7, 0.1, np.float32), np.zeros(7, int))
  for transform in (algorithms.center_by_group(), algorithms.leave_one_out()):
    scaled = advantages(t, transform, algorithms.scale_by_group_std())
    np.testing.assert_array_equal(scaled, 0)


def test_uniform_groups_are_masked_by_their_verifiable_reward():
  t = rows([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], verifiable=[1.0, 1.0, 0.0, 1.0])
  masking = algorithms.mask_uniform_groups()
  masked, _ = masking.update(t, masking.init(t))
  np.testing.assert_array_equal(masked.mask.any(1), [False, False, True, True])


CENTRED = jax.jit(
  lambda t: advantages(
    t, algorithms.center_by_group(), algorithms.scale_by_group_std()
  )
)


@settings(max_examples=30, deadline=None)
@given(
  st.lists(st.integers(-8, 8), min_size=12, max_size=12),
  st.permutations(range(12)),
  st.integers(-100, 100),
)
def test_constants_and_order_do_not_matter(rewards, order, constant):
  rewards = np.array(rewards, np.float32)
  group, order = np.repeat([3, 1, 2], 4), np.array(order)
  base = CENTRED(rows(rewards, group))
  moved = CENTRED(rows(rewards + np.float32(constant) * group, group))
  mixed = CENTRED(rows(rewards[order], group[order]))
  np.testing.assert_allclose(base, moved, 1e-4, 1e-5)
  np.testing.assert_allclose(base[order], mixed, 1e-4, 1e-5)
