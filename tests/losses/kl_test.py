"""KL estimators against the released functions."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrl_mm import masked
from jaxrl_mm.losses import kl

GOLDEN = Path(__file__).parents[1] / "golden"
R1 = np.load(GOLDEN / "stable_reinforce.npz")


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_estimators_are_those_of_lmm_r1(name):
  case = "kl_k123_later/"
  result = getattr(kl, name)(
    R1[case + "in/log_probs"], R1[case + "in/ref_log_probs"]
  )
  np.testing.assert_allclose(result, R1[case + f"out/{name}"], 1e-5, 1e-7)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_masked_means_are_those_of_r1_reward(name):
  logp, reference = R1["kl/in/log_probs"], R1["kl/in/ref_log_probs"]
  mask = R1["kl/in/action_mask"]
  result = getattr(kl, name)(logp, reference)
  np.testing.assert_allclose(
    np.where(mask, result, 0), R1[f"kl/out/{name}"], 1e-5, 1e-7
  )
  np.testing.assert_allclose(
    masked.mean(result, mask, axis=-1), R1[f"kl/out/{name}_mean"], 1e-5, 1e-7
  )


def test_k3_is_that_of_trl():
  trl = np.load(GOLDEN / "mpo_grpo.npz")
  with jax.enable_x64(True):
    result = kl.k3(trl["grpo/logps"], trl["grpo/ref_logps"])
  np.testing.assert_allclose(result, trl["grpo/k3_per_token"], 1e-12, 1e-15)


def test_estimators_average_to_the_divergence():
  policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.4, 0.2])
  exact = np.sum(policy * np.log(policy / reference))
  for estimate in (kl.k1, kl.k3):
    each = estimate(np.log(policy), np.log(reference))
    assert np.sum(policy * each) == pytest.approx(exact, rel=1e-6)
