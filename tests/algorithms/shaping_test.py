"""Rewards per token against R1-Reward, overlong shaping by hand."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_mm import algorithms
from jaxrl_mm.structs import Trajectories

R1 = np.load(Path(__file__).parents[1] / "golden" / "stable_reinforce.npz")


def rollouts(rewards, mask, **fields):
  mask = jnp.asarray(mask)
  rewards = jnp.asarray(rewards)
  t = Trajectories(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    mask=mask,
    logp=jnp.zeros(mask.shape),
    group=jnp.arange(len(mask)),
    rewards=rewards,
    verifiable=rewards,
    advantages=jnp.zeros(len(mask)),
  )
  return t._replace(**fields)


def apply(t, *transforms):
  chain = optax.chain(*transforms)
  return chain.update(t, chain.init(t))[0]


def golden(case, returns):
  """`penalize_kl` takes log-probs; the case has their difference."""
  mask = R1[f"{case}/in/action_mask"]
  weight = float(case.split("_")[2])
  t = rollouts(
    R1[f"{case}/in/reward"],
    mask,
    logp=jnp.asarray(R1[f"{case}/in/kl"]),
    reference_logp=jnp.zeros(mask.shape),
  )
  clip = algorithms.clip_rewards(-10, 10)
  return apply(
    t,
    *([clip] if case.endswith("_clip") else []),
    algorithms.advantages_from_rewards(),
    algorithms.penalize_kl(weight),
    *returns,
  )


CASES = ["token_reward_0.001_clip", "token_reward_0.1_noclip"]


@pytest.mark.parametrize("case", CASES)
def test_token_rewards_are_those_of_r1_reward(case):
  t = golden(case, [])
  expected = np.where(t.mask, R1[f"{case}/out/token_reward"], 0)
  np.testing.assert_allclose(t.advantages, expected, 1e-5, 1e-7)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gamma, name", [(1.0, "gamma1"), (0.99, "gamma099")])
def test_returns_are_those_of_r1_reward(case, gamma, name):
  t = golden(case, [algorithms.discounted_returns(gamma=gamma)])
  expected = np.where(t.mask, R1[f"{case}/out/returns_{name}"], 0)
  np.testing.assert_allclose(t.advantages, expected, 1e-5, 1e-6)


def test_kl_without_a_reference_is_an_error():
  t = rollouts(np.ones(2), np.ones((2, 3), bool))
  with pytest.raises(ValueError, match="reference_logp"):
    apply(t, algorithms.penalize_kl(0.1))


def test_kl_per_sequence_is_the_sum_over_tokens():
  mask = np.array([[True, True, False]])
  t = rollouts(
    np.array([5.0]),
    mask,
    logp=jnp.array([[1.0, 2.0, 9.0]]),
    reference_logp=jnp.zeros((1, 3)),
  )
  start = algorithms.advantages_from_rewards()
  result = apply(t, start, algorithms.penalize_kl(0.5, per="sequence"))
  np.testing.assert_allclose(result.advantages, [5 - 0.5 * 3])


def test_kl_is_taken_from_the_trainers_log_probs_where_known():
  t = rollouts(
    np.array([0.0]),
    np.ones((1, 1), bool),
    reference_logp=jnp.zeros((1, 1)),
    trainer_logp=jnp.full((1, 1), 3.0),
  )
  result = apply(t, algorithms.penalize_kl(1.0))
  assert float(result.advantages[0, 0]) == -3


def test_overlong_penalty_counts_tokens():
  lengths = np.array([0, 4, 6, 7, 8, 10, 12])
  mask = np.arange(12) < lengths[:, None]
  result = apply(rollouts(np.ones(7), mask), algorithms.shape_overlong(10, 4))
  np.testing.assert_allclose(
    result.rewards, 1 - np.array([0, 0, 0, 0.25, 0.5, 1, 1])
  )
  with pytest.raises(ValueError, match="max_length = 4"):
    algorithms.shape_overlong(4, 5)


def test_shuffled_rewards_are_the_same_rewards():
  t = rollouts(np.arange(32.0), np.ones((32, 1), bool))
  shuffle = algorithms.shuffle_rewards(0)
  first, state = shuffle.update(t, shuffle.init(t))
  second, _ = shuffle.update(t, state)
  np.testing.assert_array_equal(np.sort(first.rewards), np.arange(32))
  np.testing.assert_array_equal(first.rewards, first.verifiable)
  assert not np.array_equal(first.rewards, second.rewards)
