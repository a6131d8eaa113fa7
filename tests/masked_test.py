from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import masked

R1 = np.load(Path(__file__).parent / "golden" / "stable_reinforce.npz")


def test_total_and_mean_by_hand():
  x = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
  mask = jnp.array([[True, False, True], [False, False, True]])
  assert masked.total(x, mask) == 10
  assert masked.mean(x, mask) == pytest.approx(10 / 3)
  np.testing.assert_allclose(masked.total(x, mask, axis=1), [4, 6])
  np.testing.assert_allclose(masked.mean(x, mask, axis=0), [1, 0, 4.5])


def test_a_mask_of_fewer_axes_is_broadcast():
  x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
  assert masked.mean(x, jnp.array([[True], [False]])) == 1.5


def test_an_empty_mask_gives_zero_and_a_finite_gradient():
  x, mask = jnp.array([1.0, 2.0]), jnp.zeros(2, bool)
  assert masked.mean(x, mask) == 0
  np.testing.assert_array_equal(jax.grad(masked.mean)(x, mask), [0, 0])


def test_garbage_under_the_mask_leaks_into_neither_value_nor_gradient():
  x = jnp.array([1.0, jnp.nan, jnp.inf, 3.0])
  mask = jnp.array([True, False, False, True])
  assert masked.mean(x, mask) == 2
  np.testing.assert_array_equal(
    jax.grad(masked.mean)(x, mask), [0.5, 0, 0, 0.5]
  )


def test_narrow_floats_are_summed_in_float32():
  # In bfloat16 256 + 1 is 256: a running sum would stop there.
  x = jnp.ones(1000, jnp.bfloat16)
  assert masked.total(x, jnp.ones(1000, bool)) == 1000
  assert masked.total(x, jnp.ones(1000, bool)).dtype == jnp.float32


def test_lengths_counts_true_entries():
  mask = jnp.array([[True, True, False], [False] * 3])
  np.testing.assert_array_equal(masked.lengths(mask), [2, 0])


# ------------------------------------------------------------- token_logp
ROWS, LENGTH, WIDTH, VOCAB = 3, 7, 5, 11


@pytest.fixture(scope="module")
def scored():
  rng = np.random.default_rng(0)
  hidden = rng.standard_normal((ROWS, LENGTH, WIDTH), np.float32)
  head = rng.standard_normal((VOCAB, WIDTH), np.float32)
  tokens = rng.integers(VOCAB, size=(ROWS, LENGTH))
  return jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(tokens)


def _reference(hidden, head, tokens, temperature):
  """Float64, one position at a time."""
  hidden, head = np.asarray(hidden, float), np.asarray(head, float)
  logp, entropy = np.zeros(tokens.shape), np.zeros(tokens.shape)
  for b, t in np.ndindex(*tokens.shape):
    logits = head @ hidden[b, t] / temperature
    p = np.exp(logits) / np.exp(logits).sum()
    logp[b, t] = np.log(p[tokens[b, t]])
    entropy[b, t] = -(p * np.log(p)).sum()
  return logp, entropy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, 7, 256])
def test_token_logp_against_numpy_for_every_chunk(scored, temperature, chunk):
  got = masked.token_logp(*scored, temperature=temperature, chunk=chunk)
  for mine, theirs in zip(got, _reference(*scored, temperature)):
    assert mine.dtype == jnp.float32
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_the_entropy_of_equal_logits_is_the_log_of_the_vocabulary():
  _, entropy = masked.token_logp(
    jnp.zeros((1, 2, 4)), jnp.ones((8, 4)), jnp.zeros((1, 2), int)
  )
  np.testing.assert_allclose(entropy, np.log(8), rtol=1e-6)


def test_the_gradient_does_not_depend_on_the_chunk(scored):
  hidden, head, tokens = scored
  weights = np.random.default_rng(1).standard_normal((2, ROWS, LENGTH))

  def loss(hidden, head, chunk):
    got = masked.token_logp(hidden, head, tokens, temperature=0.7, chunk=chunk)
    return sum(jnp.sum(w * x) for w, x in zip(weights, got))

  whole = jax.grad(loss, (0, 1))(hidden, head, LENGTH)
  for chunk in (2, 3):
    parts = jax.grad(loss, (0, 1))(hidden, head, chunk)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts
    )


def test_bfloat16_hidden_states_are_scored_in_float32(scored):
  hidden, head, tokens = scored
  narrow = hidden.astype(jnp.bfloat16)
  logp, _ = masked.token_logp(narrow, head, tokens)
  expected, _ = _reference(narrow, head.astype(jnp.bfloat16), tokens, 1.0)
  np.testing.assert_allclose(logp, expected, atol=1e-4)


def _sizes(jaxpr):
  """The number of elements of every array a program makes, loops included."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield getattr(variable.aval, "size", 0)
    for inner in jax.tree.leaves(list(equation.params.values())):
      if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
        yield from _sizes(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("chunk", [4, 64])
def test_all_logits_never_exist_at_once_forward_or_backward(chunk):
  rows, length, width, vocab = 2, 64, 4, 300
  loss = lambda hidden, head, tokens: jnp.sum(
    masked.token_logp(hidden, head, tokens, chunk=chunk)[0]
  )
  jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(
    jnp.zeros((rows, length, width)),
    jnp.zeros((vocab, width)),
    jnp.zeros((rows, length), int),
  )
  assert max(_sizes(jaxpr.jaxpr)) == rows * chunk * vocab


def test_the_compiler_needs_room_for_a_chunk_of_logits_not_for_all():
  def room(length, vocab, chunk=64):
    """Bytes of the temporaries of a loss and its gradient."""
    loss = lambda hidden, head, tokens: (
      -jnp.sum(masked.token_logp(hidden, head, tokens, chunk=chunk)[0])
    )
    shape = jax.ShapeDtypeStruct
    hidden = shape((1, length, 4), jnp.float32)
    head, tokens = shape((vocab, 4), jnp.float32), shape((1, length), jnp.int32)
    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    compiled = step.lower(hidden, head, tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  length, vocab = 1024, 2000
  small = room(length, vocab)
  logits = 4 * 64 * vocab
  assert logits < small < 5 * logits < 4 * length * vocab
  assert room(2 * length, vocab) < 1.2 * small
  assert room(length, 2 * vocab) == pytest.approx(2 * small, rel=0.2)


def test_float64_stays_and_narrower_floats_are_widened():
  assert masked.widen(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
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
