"""Whitening and the 3-sigma filter against R1-Reward, and by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_mm import algorithms
from jaxrl_mm.algorithms.batch import batch_stats
from jaxrl_mm.structs import Trajectories

R1 = np.load(Path(__file__).parents[1] / "golden" / "stable_reinforce.npz")
RELEASED = ["adv_255_1", "adv_mix_mid", "adv_early", "adv_token_level"]


def with_advantages(advantages, mask):
  advantages, mask = jnp.asarray(advantages), jnp.asarray(mask)
  empty = jnp.zeros(mask.shape)
  return Trajectories(
    tokens=empty.astype(jnp.int32),
    mask=mask,
    logp=empty,
    group=jnp.arange(len(mask)),
    rewards=jnp.zeros(len(mask)),
    verifiable=jnp.zeros(len(mask)),
    advantages=advantages,
  )


def ragged(case):
  """Advantages of a case, cut into rows of its lengths and right-padded."""
  flat = R1[f"{case}/in/advantages"]
  lengths = R1[f"{case}/in/lengths"]
  mask = np.arange(lengths.max()) < lengths[:, None]
  rows = np.zeros(mask.shape, flat.dtype)
  rows[mask] = flat
  return with_advantages(rows, mask)


def apply(transform, t):
  return transform.update(t, transform.init(t))[0].advantages


@pytest.mark.parametrize("case", RELEASED)
def test_released_filter_is_that_of_r1_reward(case):
  t = ragged(case)
  result = apply(algorithms.filter_by_sigma(bounds="released"), t)
  expected = R1[f"{case}/out/normalized"]
  np.testing.assert_allclose(result[t.mask], expected, 1e-5, 1e-6)
  stats = batch_stats(t, "token")
  np.testing.assert_allclose(stats.mean, R1[f"{case}/out/mean"], 1e-5)
  np.testing.assert_allclose(stats.variance**-0.5, R1[f"{case}/out/rstd"], 1e-5)


@pytest.mark.parametrize("case", RELEASED)
def test_papers_filter_is_that_of_r1_reward_around_zero(case):
  t = ragged(case)
  result = apply(algorithms.filter_by_sigma(), t)
  expected = R1[f"{case}_paper/out/normalized"]
  np.testing.assert_allclose(result[t.mask], expected, 1e-5, 1e-5)


def test_one_value_for_all_gives_zero_or_what_the_code_gives():
  expected = R1["adv_all_equal_paper/out/normalized"]
  t = with_advantages(jnp.full(64, 0.1), jnp.ones((64, 1), bool))
  np.testing.assert_array_equal(apply(algorithms.filter_by_sigma(), t), 0)
  released = apply(algorithms.filter_by_sigma(bounds="released"), t)
  np.testing.assert_allclose(released, expected, atol=1e-5)


def test_a_row_weighs_as_often_as_it_has_tokens():
  mask = np.array([[True, True, True], [True, False, False]])
  t = with_advantages(np.array([1.0, 5.0]), mask)
  by_token, by_row = batch_stats(t, "token"), batch_stats(t, "sequence")
  assert float(by_token.mean) == 2 and float(by_token.variance) == 3
  assert float(by_row.mean) == 3 and float(by_row.variance) == 4
  spread = t._replace(advantages=t.advantages[:, None] * mask)
  for weigh in ("token", "sequence"):
    one = apply(algorithms.whiten(weigh=weigh), t)
    each = apply(algorithms.whiten(weigh=weigh), spread)
    np.testing.assert_allclose(each, one[:, None] * mask, 1e-6)


def test_both_filters_zero_an_outlier_and_keep_the_rest():
  advantages = np.zeros(64, np.float32)
  advantages[0] = -100
  t = with_advantages(advantages, np.ones((64, 1), bool))
  for bounds in ("paper", "released"):
    result = apply(algorithms.filter_by_sigma(bounds=bounds), t)
    assert result[0] == 0 and (result[1:] > 0).all()


def test_what_the_two_filters_disagree_on():
  """Past 68.46 % right answers the released bounds silence every wrong one."""
  advantages = np.where(np.arange(100) < 75, 2.0, 0.5)
  t = with_advantages(advantages, np.ones((100, 1), bool))
  paper = apply(algorithms.filter_by_sigma(), t)
  released = apply(algorithms.filter_by_sigma(bounds="released"), t)
  assert (paper[75:] < 0).all() and (released[75:] == 0).all()


def test_not_a_number_is_never_released():
  t = with_advantages(np.array([1.0, np.nan, 2.0]), np.ones((3, 1), bool))
  result = apply(algorithms.filter_by_sigma(bounds="released"), t)
  np.testing.assert_array_equal(result, 0)


def test_whitened_advantages_have_mean_0_and_deviation_1():
  rng = np.random.default_rng(0)
  mask = np.arange(9) < rng.integers(1, 9, 32)[:, None]
  t = with_advantages(rng.normal(3, 5, mask.shape), mask)
  result = np.asarray(apply(algorithms.whiten(), t))
  assert abs(result[mask].mean()) < 1e-6
  assert result[mask].std() == pytest.approx(1, rel=1e-5)
  assert (result[~mask] == 0).all()


def test_whitening_under_float64():
  with jax.enable_x64(True):
    advantages = np.random.default_rng(0).normal(size=16)
    t = with_advantages(advantages, np.ones((16, 2), bool))
    result = apply(algorithms.whiten(eps=0.0), t)
    expected = (advantages - advantages.mean()) / advantages.std()
  np.testing.assert_allclose(result, expected, 1e-12)


def test_batch_divisor_and_baseline():
  t = with_advantages(np.array([1.0, 3.0, 5.0]), np.ones((3, 2), bool))
  centred = apply(algorithms.center_by_batch(), t)
  np.testing.assert_allclose(centred, [-2, 0, 2], 1e-6)
  scaled = apply(algorithms.scale_by_batch_std(eps=0.0), t)
  expected = np.array([1, 3, 5]) / np.std([1, 3, 5])
  np.testing.assert_allclose(scaled, expected, 1e-6)


def test_clipping_of_advantages():
  t = with_advantages(np.array([-9.0, 0.5, 9.0]), np.ones((3, 1), bool))
  chain = optax.chain(algorithms.clip_advantages(2.0))
  np.testing.assert_array_equal(apply(chain, t), [-2.0, 0.5, 2.0])
