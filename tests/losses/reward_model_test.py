"""Reward-model losses against TRL, and their handling of ties."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm.losses import reward_model

RM = np.load(Path(__file__).parents[1] / "golden" / "mpo_grpo.npz")


def test_bradley_terry_is_that_of_trl():
  score = RM["rm/score"]
  with jax.enable_x64(True):
    loss = reward_model.bradley_terry(score[:2], score[2:])
  np.testing.assert_allclose(loss, RM["rm/pair_loss"], 1e-12)
  narrow = reward_model.bradley_terry(score[:2], score[2:])
  np.testing.assert_allclose(narrow, RM["rm/pair_loss"], 1e-5)


def test_margin_shifts_the_gap():
  chosen, rejected = np.array([3.0, 1.0]), np.array([0.0, 0.5])
  margin = np.array([1.0, 0.0])
  np.testing.assert_allclose(
    reward_model.bradley_terry(chosen, rejected, margin=margin),
    np.log1p(np.exp(-np.array([2.0, 0.5]))),
    1e-6,
  )


def test_only_the_difference_of_scores_matters():
  at = lambda c: reward_model.bradley_terry(np.ones(1) + c, np.zeros(1) + c)
  np.testing.assert_allclose(at(0.0), at(100.0), 1e-5)


def test_ties_count_nowhere():
  chosen = jnp.array([1.0, 5.0, jnp.nan])
  rejected = jnp.array([0.0, 9.0, 0.0])
  tie = jnp.array([False, True, True])
  loss = lambda c: reward_model.mean_without_ties(c, rejected, tie)
  (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(chosen)
  assert float(value) == pytest.approx(float(np.log1p(np.exp(-1))))
  assert float(metrics["accuracy"]) == 1
  assert gradient[0] < 0 and not gradient[1:].any()
  assert float(loss(chosen)[0]) == float(value)
  every = reward_model.mean_without_ties(chosen, rejected, jnp.ones(3, bool))
  assert float(every[0]) == 0
