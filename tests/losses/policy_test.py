"""Policy losses against the released functions, and by hand."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_mm.losses import kl, policy

GOLDEN = Path(__file__).parents[1] / "golden"
R1 = np.load(GOLDEN / "stable_reinforce.npz")
TRL = np.load(GOLDEN / "mpo_grpo.npz")
PRE_CLIP = (math.log(1e-3), math.log(1e3))


@pytest.fixture(params=["float32", "float64"])
def precise(request):
  """Runs a test in either precision and gives its relative tolerance."""
  with jax.enable_x64(request.param == "float64"):
    yield 1e-12 if request.param == "float64" else 1e-5


def value_and_grad(loss, logp, *args, **settings):
  def value(logp):
    out = loss(logp, *args, **settings)
    return out[0] if isinstance(out, tuple) else out

  return jax.jit(jax.value_and_grad(value))(jnp.asarray(logp))


@pytest.mark.parametrize("bounds", [PRE_CLIP, None], ids=["pre_clip", "plain"])
@pytest.mark.parametrize(
  "case", ["pl_paper_example", "pl_random_right_f64", "pl_extreme_neg"]
)
def test_clipped_surrogate_is_that_of_stable_reinforce(case, bounds):
  given = [
    R1[f"{case}/in/{name}"]
    for name in ("log_probs", "old_log_probs", "advantages", "action_mask")
  ]
  out = f"{case}/out/" if bounds else f"{case}_vanilla/out/"
  wide = given[0].dtype == np.float64
  with jax.enable_x64(wide):
    loss, gradient = value_and_grad(
      policy.clipped_surrogate, *given, log_ratio_bounds=bounds
    )
  rtol = 1e-12 if wide else 1e-5
  np.testing.assert_allclose(loss, R1[out + "loss"], rtol)
  np.testing.assert_allclose(gradient, R1[out + "grad_log_probs"], rtol)


def test_paper_example_prints_the_losses_of_the_paper():
  case = "pl_paper_example/in/"
  ratio = R1[case + "log_probs"] - R1[case + "old_log_probs"]
  losses = [
    float(
      policy.clipped_surrogate(
        ratio[:, t : t + 1],
        np.zeros((1, 1), np.float32),
        R1[case + "advantages"][:, t : t + 1],
        np.ones((1, 1), bool),
      )[0]
    )
    for t in range(4)
  ]
  np.testing.assert_allclose(losses, [19930.4, 1.1, -0.5, 67.1], rtol=0.11)


@pytest.mark.parametrize(
  "case, settings, beta",
  [
    ("grpo_b0", {}, 0.0),
    ("grpo_b004", {}, 0.04),
    ("grpo_cliphigh", {"clip_high": 0.28}, 0.0),
    ("dapo", {"clip_high": 0.28, "aggregate": "token"}, 0.0),
  ],
)
def test_grpo_loss_is_that_of_trl(precise, case, settings, beta):
  logp, old, ref, mask, advantages = (
    TRL[f"grpo/{x}"]
    for x in ("logps", "old_logps", "ref_logps", "mask", "advantages")
  )

  def loss(logp):
    surrogate, metrics = policy.clipped_surrogate(
      logp, old, advantages, mask, **settings
    )
    penalty = policy.aggregate_tokens(kl.k3(logp, ref), mask, "sequence")
    return surrogate + beta * penalty, metrics

  (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(
    jnp.asarray(logp)
  )
  out = f"grpo/{case}/"
  np.testing.assert_allclose(value, TRL[out + "loss"], precise)
  np.testing.assert_allclose(
    gradient, TRL[out + "grad"], precise, precise / 100
  )
  if settings.get("aggregate") == "token":
    # A logged metric, float32 in the original.
    share = TRL[out + "clip_ratio_region_mean"]
    np.testing.assert_allclose(metrics["clip_fraction"], share, 1e-6)


def test_aggregates_by_hand():
  per_token = np.array([[1.0, 3.0, 9.0], [5.0, 9.0, 9.0]])
  mask = np.array([[1, 1, 0], [1, 0, 0]])
  result = lambda how: float(policy.aggregate_tokens(per_token, mask, how))
  assert result("sequence") == pytest.approx((2 + 5) / 2)
  assert result("token") == pytest.approx(9 / 3)
  assert result(10) == pytest.approx((4 + 5) / 2 / 10)


def test_dual_clip_bounds_the_loss_of_bad_actions():
  ratio = jnp.log(jnp.array([[100.0]]))
  loss = lambda a: policy.clipped_surrogate(
    ratio, jnp.zeros((1, 1)), jnp.array([a]), jnp.ones((1, 1)), dual_clip=3.0
  )[0]
  assert float(loss(-2.0)) == pytest.approx(6.0)
  assert float(loss(2.0)) == pytest.approx(-2.4)


def test_gspo_by_hand(precise):
  logp = np.log([[0.5, 0.2, 0.9]])
  old = np.log([[0.4, 0.3, 0.1]])
  mask = np.array([[1, 1, 0]])
  s = math.sqrt(0.5 / 0.4 * 0.2 / 0.3)
  loss, gradient = value_and_grad(
    policy.gspo, logp, old, np.array([-2.0]), mask, clip_low=0.5, clip_high=0.5
  )
  np.testing.assert_allclose(loss, 2 * s, precise)
  # ds / dlogp_t = s / length.
  np.testing.assert_allclose(gradient, [[s, s, 0]], precise)
  clipped, flat = value_and_grad(
    policy.gspo, logp, old, np.array([-2.0]), mask, clip_low=0.01
  )
  np.testing.assert_allclose(clipped, 2 * 0.99, precise)
  np.testing.assert_array_equal(flat, 0)


def test_cispo_clips_the_weight_and_keeps_the_gradient(precise):
  logp = np.log([[0.5, 0.5]])
  old = np.log([[0.05, 0.25]])
  loss, gradient = value_and_grad(
    policy.cispo, logp, old, np.array([1.5]), np.ones((1, 2))
  )
  np.testing.assert_allclose(gradient, [[-5 * 1.5 / 2, -2 * 1.5 / 2]], precise)
  np.testing.assert_allclose(loss, -np.log(0.5) * 1.5 * 3.5, precise)


def test_reinforce_by_hand(precise):
  logp = np.array([[-1.0, -2.0], [-3.0, 0.0]])
  mask = np.array([[1, 1], [1, 0]])
  loss, gradient = value_and_grad(
    policy.reinforce, logp, np.array([1.0, -1.0]), mask, aggregate=1
  )
  np.testing.assert_allclose(loss, (3 - 3) / 2, atol=precise)
  np.testing.assert_allclose(gradient, [[-0.5, -0.5], [0.5, 0]], precise)


def test_truncated_importance_weighs_tokens_and_takes_no_gradient(precise):
  trainer = jnp.log(jnp.array([[0.2, 0.8, 0.5]]))
  sampler = jnp.log(jnp.array([[0.4, 0.1, 0.5]]))
  mask = jnp.array([[True, True, False]])
  weights = policy.truncated_importance(trainer, sampler, mask)
  np.testing.assert_allclose(weights, [[0.5, 2.0, 1.0]], precise)
  gradient = jax.grad(
    lambda x: policy.truncated_importance(x, sampler, mask).sum()
  )(trainer)
  np.testing.assert_array_equal(gradient, 0)
  args = trainer, trainer, jnp.ones(1), mask
  loss, _ = policy.clipped_surrogate(*args, weights=weights)
  np.testing.assert_allclose(loss, -1.25, precise)


def test_entropy_of_known_distributions(precise):
  logits = jnp.array([[0.0, 0.0, -jnp.inf], [50.0, -50.0, -jnp.inf]])
  np.testing.assert_allclose(
    policy.entropy(logits), [math.log(2), 0], precise, 1e-12
  )
  gradient = jax.grad(lambda x: policy.entropy(x).sum())(logits)
  assert np.isfinite(gradient).all()


LOSSES = {
  "clipped_surrogate": policy.clipped_surrogate,
  "gspo": policy.gspo,
  "cispo": policy.cispo,
  "reinforce": lambda logp, old, advantages, mask: (
    policy.reinforce(logp, advantages, mask),
  ),
}

# Compiled once a shape, however many examples are drawn.
GRADIENTS = {
  name: jax.jit(jax.value_and_grad(lambda *args, loss=loss: loss(*args)[0]))
  for name, loss in LOSSES.items()
}


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20), garbage=st.sampled_from([0.0, np.inf, 7.0]))
def test_padding_changes_nothing(name, seed, garbage):
  """More columns under the mask, and rows without tokens."""
  rng = np.random.default_rng(seed)
  logp, old = rng.normal(-1, 0.3, (2, 3, 4)).astype(np.float32)
  advantages = rng.normal(size=3).astype(np.float32)
  mask = rng.random((3, 4)) < 0.7
  pad = lambda x, fill: np.pad(x, [(0, 2), (0, 3)], constant_values=fill)
  loss = GRADIENTS[name]
  small, gradient = loss(logp, old, advantages, mask)
  large, padded = loss(
    pad(logp, -garbage),
    pad(old, garbage),
    np.pad(advantages, (0, 2), constant_values=9.0),
    pad(mask, False),
  )
  np.testing.assert_allclose(small, large, 1e-5, 1e-6)
  np.testing.assert_allclose(pad(gradient, 0), padded, 1e-5, 1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_is_computed_in_float32(name):
  rng = np.random.default_rng(0)
  logp, old = jnp.asarray(rng.normal(-1, 0.3, (2, 4, 5)), jnp.bfloat16)
  advantages = jnp.asarray(rng.normal(size=4), jnp.bfloat16)
  mask = jnp.ones((4, 5), bool)
  wide = [x.astype(jnp.float32) for x in (logp, old, advantages)]
  loss, gradient = GRADIENTS[name](logp, old, advantages, mask)
  same, _ = GRADIENTS[name](*wide, mask)
  assert loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
  np.testing.assert_allclose(loss, same, 1e-6)


def test_losses_vmap():
  rng = np.random.default_rng(0)
  logp, old = rng.normal(-1, 0.3, (2, 6, 3, 4))
  advantages, mask = rng.normal(size=(6, 3)), rng.random((6, 3, 4)) < 0.7
  many, _ = jax.vmap(policy.clipped_surrogate)(logp, old, advantages, mask)
  each = [
    policy.clipped_surrogate(*x)[0] for x in zip(logp, old, advantages, mask)
  ]
  np.testing.assert_allclose(many, each, 1e-6)
