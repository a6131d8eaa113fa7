"""Returns and GAE against R1-Reward, and by hand."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import algorithms
from jaxrl_mm.algorithms.returns import discount
from jaxrl_mm.structs import Trajectories

R1 = np.load(Path(__file__).parents[1] / "golden" / "stable_reinforce.npz")


def rollouts(advantages, mask, values=None):
  zero = jnp.zeros(mask.shape)
  return Trajectories(
    tokens=zero.astype(jnp.int32),
    mask=jnp.asarray(mask),
    logp=zero,
    group=jnp.arange(len(mask)),
    rewards=jnp.zeros(len(mask)),
    verifiable=jnp.zeros(len(mask)),
    advantages=jnp.asarray(advantages),
    values=values,
  )


def test_gae_is_that_of_r1_reward():
  case = "gae_1.0_0.95/"
  mask = R1[case + "in/action_mask"]
  t = rollouts(
    R1[case + "in/rewards"], mask, jnp.asarray(R1[case + "in/values"])
  )
  result, _ = algorithms.gae().update(t, algorithms.gae().init(t))
  for name in ("advantages", "returns"):
    expected = np.where(mask, R1[f"{case}out/{name}"], 0)
    np.testing.assert_allclose(getattr(result, name), expected, 1e-5, 1e-6)


def test_gae_needs_values():
  t = rollouts(np.ones(2), np.ones((2, 3), bool))
  with pytest.raises(ValueError, match="critic"):
    algorithms.gae().update(t, algorithms.gae().init(t))


def test_a_perfect_critic_leaves_nothing_to_learn():
  mask = np.array([[True, True, True], [True, False, False]])
  rewards = np.array([0.7, -2.0], np.float32)
  t = rollouts(rewards, mask, jnp.asarray(rewards[:, None] * mask))
  result, _ = algorithms.gae().update(t, algorithms.gae().init(t))
  np.testing.assert_array_equal(result.advantages, 0)


def test_rewards_of_rows_arrive_at_every_token_discounted():
  mask = np.array([[True, True, True, False]])
  t = rollouts(np.array([8.0]), mask)
  halved = algorithms.discounted_returns(gamma=0.5)
  result, _ = halved.update(t, halved.init(t))
  np.testing.assert_allclose(result.advantages, [[2, 4, 8, 0]])


def test_discount_by_hand():
  x = jnp.array([[1.0, 2.0, 3.0]])
  np.testing.assert_allclose(discount(x, 0.1), [[1.23, 2.3, 3.0]], 1e-6)
  np.testing.assert_allclose(discount(x, 1.0), [[6.0, 5.0, 3.0]])
