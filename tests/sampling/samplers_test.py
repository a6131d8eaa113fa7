import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm.sampling import samplers

VOCAB = 12


@pytest.fixture(scope="module")
def logits():
  rng = np.random.default_rng(0)
  return jnp.asarray(2 * rng.standard_normal((6, VOCAB), np.float32))


def _keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def _kept(logits, **options):
  return np.asarray(samplers.truncate(logits, **options)) > samplers.LOWEST


def _softmax(x):
  p = np.exp(np.asarray(x, np.float64) - np.max(x, -1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def _nucleus(logits, top_p):
  """The likeliest tokens, one by one, until their mass reaches `top_p`."""
  kept = np.zeros(logits.shape, bool)
  for row, p in enumerate(_softmax(logits)):
    mass = 0.0
    for token in np.argsort(-p):
      kept[row, token] = True
      mass += p[token]
      if mass >= top_p:
        break
  return kept


def test_nothing_is_dropped_by_default(logits):
  assert samplers.truncate(logits) is logits


@pytest.mark.parametrize("top_k", [1, 3, VOCAB, VOCAB + 5])
def test_top_k_against_numpy(logits, top_k):
  rank = np.argsort(np.argsort(-np.asarray(logits), -1), -1)
  np.testing.assert_array_equal(_kept(logits, top_k=top_k), rank < top_k)


def test_ties_at_the_kth_place_are_all_kept():
  kept = _kept(jnp.array([[1.0, 3.0, 1.0, 0.0]]), top_k=2)
  np.testing.assert_array_equal(kept, [[True, True, True, False]])


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_against_numpy(logits, top_p):
  np.testing.assert_array_equal(
    _kept(logits, top_p=top_p), _nucleus(logits, top_p)
  )


def test_the_token_that_crosses_the_mass_is_kept():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
  np.testing.assert_array_equal(_kept(logits, top_p=0.6), [[True, True, False]])


def test_a_mass_of_zero_keeps_the_likeliest_token(logits):
  kept = _kept(logits, top_p=0.0)
  np.testing.assert_array_equal(kept.sum(-1), 1)
  np.testing.assert_array_equal(kept.argmax(-1), np.argmax(logits, -1))


def test_top_p_is_the_mass_of_what_top_k_left(logits):
  best = np.where(_kept(logits, top_k=4), logits, -np.inf)
  np.testing.assert_array_equal(
    _kept(logits, top_k=4, top_p=0.8), _nucleus(best, 0.8)
  )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logp_is_of_the_tempered_distribution_before_truncation(
  logits, temperature
):
  tokens, logp = samplers.draw(
    _keys(6), logits, temperature=temperature, top_k=3, top_p=0.9
  )
  probs = _softmax(np.asarray(logits) / temperature)
  expected = np.log(probs[np.arange(6), tokens])
  np.testing.assert_allclose(logp, expected, atol=1e-5)


def test_temperature_zero_is_greedy_and_scores_by_plain_softmax(logits):
  tokens, logp = samplers.draw(_keys(6), logits, temperature=0.0)
  np.testing.assert_array_equal(tokens, np.argmax(logits, -1))
  expected = np.log(_softmax(logits).max(-1))
  np.testing.assert_allclose(logp, expected, atol=1e-5)


def test_draws_follow_the_truncated_tempered_distribution():
  logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
  count = 20_000
  tokens, _ = samplers.draw(
    _keys(count), jnp.tile(logits, (count, 1)), temperature=0.5, top_k=3
  )
  share = np.bincount(tokens, minlength=4) / count
  # Squared by the temperature, the last dropped: 16 : 9 : 4.
  np.testing.assert_allclose(share, [16 / 29, 9 / 29, 4 / 29, 0], atol=0.015)


def test_a_row_depends_on_its_own_key_alone(logits):
  keys = _keys(6)
  tokens, logp = samplers.draw(keys, logits)
  order = np.array([4, 1, 5])
  some, some_logp = samplers.draw(keys[order], logits[order])
  np.testing.assert_array_equal(some, tokens[order])
  np.testing.assert_allclose(some_logp, logp[order], rtol=1e-6)


def test_narrow_logits_are_scored_in_float32(logits):
  _, logp = samplers.draw(_keys(6), logits.astype(jnp.bfloat16))
  assert logp.dtype == jnp.float32
