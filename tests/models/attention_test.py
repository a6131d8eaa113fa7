import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import sharding
from jaxrl_mm.models import attention
from jaxrl_mm.models.attention import Cache, CacheMask, Causal

HEADS, KV_HEADS, WIDTH = 6, 2, 4


def _random(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _reference(q, k, v, mask):
  """One head at a time, each with its own copy of its key head."""
  repeats = q.shape[2] // k.shape[2]
  k, v = (np.repeat(x, repeats, axis=2).astype(float) for x in (k, v))
  logits = np.einsum("bthe,bshe->bhts", q, k) / np.sqrt(q.shape[-1])
  logits = np.where(mask[:, None], logits, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum("bhts,bshe->bthe", weights, v)


def test_full_attention_with_grouped_keys_equals_repeated_ones():
  q = _random(2, 5, HEADS, WIDTH)
  k = _random(2, 7, KV_HEADS, WIDTH, seed=1)
  v = _random(2, 7, KV_HEADS, WIDTH, seed=2)
  mask = np.random.default_rng(3).random((2, 5, 7)) < 0.5
  mask[..., 0] = True
  arrays = [jnp.asarray(x) for x in (q, k, v, mask)]
  got = attention.full(*arrays)
  np.testing.assert_allclose(got, _reference(q, k, v, mask), atol=1e-5)
  everything = np.ones_like(mask)
  np.testing.assert_allclose(
    attention.full(*arrays[:3]), _reference(q, k, v, everything), atol=1e-5
  )


def test_a_query_that_sees_nothing_is_finite_with_a_finite_gradient():
  q, k, v = jnp.asarray(_random(3, 1, 2, KV_HEADS, WIDTH))
  nothing = jnp.zeros((1, 2, 2), bool)
  loss = lambda q, k, v: jnp.sum(attention.full(q, k, v, nothing) ** 2)
  value, gradient = jax.value_and_grad(loss, (0, 1, 2))(q, k, v)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in gradient)


@pytest.fixture
def decoding():
  """One new token of four rows, two a prompt, and everything before it."""
  prompts, samples, prompt, own = 2, 2, 5, 3
  rows = prompts * samples
  mask = CacheMask(
    prompt=jnp.array([[False, False, True, True, True], [True] * 5]),
    own=jnp.array([[True, True, False]] * rows),
  )
  cache = Cache(
    prompt_k=jnp.asarray(_random(prompts, KV_HEADS, prompt, WIDTH)),
    prompt_v=jnp.asarray(_random(prompts, KV_HEADS, prompt, WIDTH, seed=1)),
    k=jnp.asarray(_random(rows, KV_HEADS, own, WIDTH, seed=2)),
    v=jnp.asarray(_random(rows, KV_HEADS, own, WIDTH, seed=3)),
  )
  q = jnp.asarray(_random(rows, 1, HEADS, WIDTH, seed=4))
  k, v = jnp.asarray(_random(2, rows, 1, KV_HEADS, WIDTH, seed=5))
  return q, k, v, cache, mask


def _concatenated(k, v, cache, mask):
  whole = lambda prompt, own, new: jnp.concatenate(
    [jnp.repeat(prompt, 2, axis=0), own, new], axis=1
  )
  by_token = lambda x: jnp.swapaxes(x, 1, 2)
  seen = whole(mask.prompt, mask.own, jnp.ones((4, 1), bool))
  return (
    whole(by_token(cache.prompt_k), by_token(cache.k), k),
    whole(by_token(cache.prompt_v), by_token(cache.v), v),
    seen[:, None],
  )


def test_cached_attention_equals_attention_over_the_concatenation(decoding):
  q, *rest = decoding
  got = attention.cached(q, *rest)
  k, v, mask = _concatenated(*rest)
  np.testing.assert_allclose(
    got, attention.full(q, k, v, mask), atol=1e-6, rtol=1e-5
  )
  np.testing.assert_allclose(
    got, _reference(*[np.asarray(x) for x in (q, k, v, mask)]), atol=1e-5
  )


def test_cached_attention_keeps_bfloat16(decoding):
  wide = attention.cached(*decoding)
  narrow = jax.tree.map(
    lambda x: x if x.dtype == bool else x.astype(jnp.bfloat16), decoding
  )
  got = attention.cached(*narrow)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), wide, atol=3e-2)


def test_what_the_mask_hides_does_not_count(decoding):
  q, k, v, cache, mask = decoding
  hidden = cache._replace(
    prompt_k=jnp.where(mask.prompt[:, None, :, None], cache.prompt_k, 99.0),
    prompt_v=jnp.where(mask.prompt[:, None, :, None], cache.prompt_v, 99.0),
    k=jnp.where(mask.own[:, None, :, None], cache.k, 99.0),
    v=jnp.where(mask.own[:, None, :, None], cache.v, 99.0),
  )
  np.testing.assert_array_equal(
    attention.cached(q, k, v, hidden, mask),
    attention.cached(q, k, v, cache, mask),
  )


def test_a_causal_mask_hides_padding_and_the_future():
  real = np.ones((2, 9), bool)
  real[0, :3] = real[1, 7:] = False
  q = _random(2, 9, HEADS, WIDTH)
  k, v = _random(2, 2, 9, KV_HEADS, WIDTH, seed=1)
  arrays = [jnp.asarray(x) for x in (q, k, v)]
  got = jax.jit(attention.full)(*arrays, Causal(jnp.asarray(real)))
  # Padding sees itself here, so that no row of the reference is empty.
  seen = np.tril(np.ones((9, 9), bool)) & real[:, None] | np.eye(9, dtype=bool)
  expected = _reference(q, k, v, seen)
  np.testing.assert_allclose(got[real], expected[real], atol=1e-5)
  assert np.isfinite(got).all()


def test_queries_that_are_cut_do_not_go_to_cudnn(monkeypatch):
  """Which would refuse them."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  asked, fused = [], jax.nn.dot_product_attention

  def record(*arrays, mask, implementation):
    asked.append(implementation)
    return fused(*arrays, mask=mask)

  monkeypatch.setattr(jax.nn, "dot_product_attention", record)
  q, real = jnp.zeros((1, 8, 2, 8), jnp.bfloat16), jnp.ones((1, 8), bool)
  for sequence in (1, 2):
    devices = jax.devices()[:sequence]
    mesh = sharding.make_mesh(devices=devices, sequence=sequence)
    with jax.set_mesh(mesh):
      jax.eval_shape(attention.full, q, q, q, Causal(real))
      jax.eval_shape(attention.full, q, q, q)
  assert asked == ["cudnn", "cudnn", "xla", "cudnn"]
