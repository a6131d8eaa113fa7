"""Masked statistics, and log-probs in chunks, against the plain formula."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import masked

R1 = np.load(Path(__file__).parent / "golden" / "stable_reinforce.npz")


def test_garbage_under_the_mask_does_not_leak():
  x = np.array([[1.0, 3.0, np.nan], [np.inf, -np.inf, np.nan]])
  mask = np.array([[True, True, False], [False, False, False]])
  assert float(masked.total(x, mask)) == 4
  np.testing.assert_array_equal(masked.mean(x, mask, axis=1), [2, 0])
  np.testing.assert_array_equal(masked.lengths(mask), [2, 0])


def test_sums_of_narrow_floats_are_float32():
  x = jnp.full(4096, 1.0, jnp.bfloat16)
  assert float(masked.total(x, x > 0)) == 4096
  assert masked.widen(x).dtype == jnp.float32
  with jax.enable_x64(True):
    assert masked.widen(np.zeros(2)).dtype == jnp.float64


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_token_log_probs_are_those_of_r1_reward(chunk):
  """The logits of the case, with the identity for an output embedding."""
  logits = jnp.asarray(R1["log_probs_from_logits/in/logits"])
  labels = jnp.asarray(R1["log_probs_from_logits/in/labels"], jnp.int32)
  head = jnp.eye(logits.shape[-1])
  logp, entropy = masked.token_logp(logits, head, labels, chunk=chunk)
  expected = R1["log_probs_from_logits/out/log_probs"]
  np.testing.assert_allclose(logp, expected, 1e-5)
  p = jax.nn.softmax(logits)
  np.testing.assert_allclose(entropy, -jnp.sum(p * jnp.log(p), -1), 1e-5)


def test_temperature_divides_the_logits():
  rng = np.random.default_rng(0)
  hidden, head = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 4))
  hidden, head = jnp.asarray(hidden, jnp.float32), jnp.asarray(head)
  tokens = jnp.zeros((2, 3), jnp.int32)
  cold, _ = masked.token_logp(hidden, head, tokens, temperature=0.5)
  scaled, _ = masked.token_logp(2 * hidden, head, tokens)
  np.testing.assert_allclose(cold, scaled, 1e-5)
