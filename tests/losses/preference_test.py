"""Preference losses against InternVL's trainer, and by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm.losses import preference

MPO = np.load(Path(__file__).parents[1] / "golden" / "mpo_grpo.npz")
BETA = float(MPO["mpo/beta"])
WEIGHTS = tuple(float(w) for w in MPO["mpo/weights"])


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def completion_logp(logits, labels):
  """[2B] summed log-probs; logits at t predict the label at t + 1."""
  labels = labels[:, 1:]
  logp = jax.nn.log_softmax(logits[:, :-1])
  picked = jnp.take_along_axis(
    logp, jnp.where(labels == -100, 0, labels)[..., None], axis=-1
  )[..., 0]
  return jnp.sum(picked * (labels != -100), axis=-1)


def split(rows):
  return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def steps():
  """Each step's logits, labels and reference log-probs of the pairs."""
  for step in range(3):
    labels = MPO["mpo/labels"][step]
    reference = completion_logp(MPO["mpo/ref_logits"][step], labels)
    yield step, jnp.asarray(MPO["mpo/policy_logits"][step]), labels, reference


def shifts(order="current"):
  """What `reward_shift` gives in each of the three steps."""
  moving = preference.reward_shift(order=order)
  state = moving.init(None)
  for _, logits, labels, reference in steps():
    rewards = preference.implicit_reward(
      completion_logp(logits, labels), reference, beta=BETA
    )
    shift, state = jax.jit(moving.update)(rewards, state)
    yield shift


def test_shift_in_the_released_order_is_internvls(x64):
  np.testing.assert_allclose(list(shifts()), MPO["mpo/delta"], 2e-7)


def test_shift_in_the_papers_order_lags_by_one(x64):
  past = [0.0, *MPO["mpo/delta"][:-1]]
  np.testing.assert_allclose(list(shifts("past")), past, 2e-7)


def test_dpo_and_bco_are_internvls(x64):
  for (step, logits, labels, reference), shift in zip(steps(), shifts()):
    pairs = *split(completion_logp(logits, labels)), *split(reference)
    dpo = preference.dpo(*pairs, beta=BETA)
    bco = preference.bco(*pairs, shift, beta=BETA)
    np.testing.assert_allclose(dpo, MPO["mpo/dpo_per_sample"][step], 1e-10)
    np.testing.assert_allclose(bco, MPO["mpo/bco_per_sample"][step], 2e-7)


@pytest.mark.parametrize("name", ["dpo", "bco"])
def test_gradients_are_internvls(x64, name):
  for (step, logits, labels, reference), shift in zip(steps(), shifts()):

    def loss(logits, labels=labels, reference=reference, shift=shift):
      pairs = *split(completion_logp(logits, labels)), *split(reference)
      if name == "dpo":
        return jnp.mean(preference.dpo(*pairs, beta=BETA))
      return jnp.mean(preference.bco(*pairs, shift, beta=BETA))

    rtol = {"dpo": 1e-10, "bco": 2e-7}[name]
    value, gradient = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, MPO[f"mpo/{name}_only_loss"][step], rtol)
    np.testing.assert_allclose(
      gradient, MPO[f"mpo/{name}_only_grad"][step], rtol, 1e-10
    )


def test_mpo_is_internvls(x64):
  for (step, logits, labels, reference), shift in zip(steps(), shifts()):
    lengths = (labels[:3, 1:] != -100).sum(-1)

    def loss(
      logits, labels=labels, reference=reference, shift=shift, lengths=lengths
    ):
      pairs = *split(completion_logp(logits, labels)), *split(reference)
      return preference.mpo(
        *pairs, lengths, shift, beta=BETA, weights=WEIGHTS, aggregate="token"
      )

    (value, metrics), gradient = jax.jit(
      jax.value_and_grad(loss, has_aux=True)
    )(logits)
    np.testing.assert_allclose(value, MPO["mpo/total_loss"][step], 2e-7)
    np.testing.assert_allclose(
      gradient, MPO["mpo/total_grad"][step], 2e-7, 1e-10
    )
    np.testing.assert_allclose(
      metrics["generation"], MPO["mpo/nll"][step], 1e-10
    )
    # The original logs rewards multiplied by the sum of the weights.
    np.testing.assert_allclose(
      metrics["reward_chosen"] * sum(WEIGHTS[:2]),
      MPO["mpo/metric_rewards_chosen"][step],
      1e-6,
    )
    np.testing.assert_allclose(
      metrics["accuracy"], MPO["mpo/metric_rewards_accuracies"][step], 1e-6
    )


def test_generation_by_default_is_the_papers(x64):
  for step, logits, labels, _ in steps():
    chosen = completion_logp(logits, labels)[:3]
    lengths = (labels[:3, 1:] != -100).sum(-1)
    result = preference.mpo(*[chosen] * 4, lengths, 0.0)[1]["generation"]
    paper = MPO["mpo/nll_seqmean_paper"][step]
    np.testing.assert_allclose(result, paper, 1e-10)
    each = preference.generation(chosen, lengths)
    np.testing.assert_allclose(each.mean(), paper, 1e-10)


def test_defaults_are_internvls():
  assert WEIGHTS == (0.8, 0.2, 1.0) and BETA == 0.1
  rows = np.array([-1.0, -4.0])
  pairs = rows, rows - 1, rows, rows + 1
  default = preference.mpo(*pairs, np.array([2, 4]), 0.1)[0]
  given = preference.mpo(
    *pairs, np.array([2, 4]), 0.1, beta=BETA, weights=WEIGHTS
  )[0]
  assert float(default) == float(given)


def test_shift_decays_when_asked():
  moving = preference.reward_shift(decay=0.9, order="current")
  state = moving.init(None)
  first, state = moving.update(jnp.array([2.0, 4.0]), state)
  second, state = moving.update(jnp.array([13.0]), state)
  assert float(first) == 3 and float(second) == pytest.approx(4.0)
  assert int(state.count) == 2


def test_shift_takes_no_gradient():
  rows = jnp.array([-1.0])
  gradient = jax.grad(
    lambda s: preference.bco(rows, rows, rows, rows, s).sum()
  )(1.0)
  assert float(gradient) == 0


ONE = np.array([-2.0]), np.array([-5.0]), np.array([-3.0]), np.array([-4.0])
H = 1.0 - -1.0
sigmoid = lambda x: 1 / (1 + np.exp(-x))


def test_cdpo_mixes_both_directions():
  expected = -0.7 * np.log(sigmoid(0.1 * H)) - 0.3 * np.log(sigmoid(-0.1 * H))
  result = preference.cdpo(*ONE, beta=0.1, label_noise=0.3)
  np.testing.assert_allclose(result, expected, 1e-6)
  np.testing.assert_allclose(
    preference.cdpo(*ONE, label_noise=0.0), preference.dpo(*ONE), 1e-6
  )


def test_ipo_draws_the_margin_to_a_half_over_beta():
  np.testing.assert_allclose(preference.ipo(*ONE, beta=0.25), 0, atol=1e-6)
  np.testing.assert_allclose(preference.ipo(*ONE, beta=0.1), (H - 5) ** 2, 1e-6)


def test_simpo_by_hand():
  result = preference.simpo(*ONE[:2], np.array([2]), np.array([10]))
  expected = -np.log(sigmoid(2.0 * (-1.0 - -0.5) - 1.0))
  np.testing.assert_allclose(result, expected, 1e-6)


def test_orpo_by_hand():
  chosen, rejected = np.exp(-1.0), np.exp(-0.5)
  odds = chosen / (1 - chosen) * (1 - rejected) / rejected
  expected = 1.0 - 0.1 * np.log(sigmoid(np.log(odds)))
  result = preference.orpo(*ONE[:2], np.array([2]), np.array([10]))
  np.testing.assert_allclose(result, expected, 1e-5)
  sure = lambda x: preference.orpo(x, x - 1, np.array([2]), np.array([2])).sum()
  assert np.isfinite(jax.grad(sure)(jnp.zeros(1))).all()


def test_kto_by_hand():
  policy, reference = np.array([-1.0, -1.0]), np.array([-3.0, -3.0])
  point = preference.kto_reference_point(policy - 1, reference, beta=0.1)
  assert float(point) == pytest.approx(0.1)
  below = preference.kto_reference_point(policy - 9, reference, beta=0.1)
  assert float(below) == 0
  result = preference.kto(
    policy,
    reference,
    np.array([True, False]),
    point,
    undesirable_weight=2.0,
  )
  expected = [1 - sigmoid(0.1), 2 * (1 - sigmoid(-0.1))]
  np.testing.assert_allclose(result, expected, 1e-6)
