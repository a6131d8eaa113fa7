import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm.models import vlm
from jaxrl_mm.models.attention import Cache, CacheMask
from jaxrl_mm.models.decoder import Block, Decoder, Embedder

pytestmark = pytest.mark.usefixtures("quick_compile")

ROWS, LENGTH = 2, 5
POSITIONS = jnp.tile(jnp.arange(LENGTH), (ROWS, 1))
CAUSAL = jnp.tile(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), (ROWS, 1, 1))


@pytest.fixture(scope="module")
def x(tiny):
  rng = np.random.default_rng(0)
  shape = (ROWS, LENGTH, tiny.decoder.width)
  return jnp.asarray(rng.standard_normal(shape, np.float32))


def _rms(x, scale, eps=1e-6):
  return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * scale


def _turn(x, theta):
  """Rotary positions of [T, E] as complex numbers."""
  half = x.shape[-1] // 2
  angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
  z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
  return np.concatenate([z.real, z.imag], axis=-1)


def _reference(x, params, c):
  """Qwen2 on one row, head by head, in float64."""
  for layer in range(c.layers):
    p = jax.tree.map(
      lambda w, layer=layer: np.asarray(w[layer], np.float64), params["layers"]
    )
    a, y = p["attention"], _rms(x, p["norm1"]["scale"])
    for head in range(c.heads):
      shared = head // (c.heads // c.kv_heads)
      project = lambda name, h, a=a, y=y: (
        y @ a[name]["kernel"][:, h] + a[name]["bias"][h]
      )
      q = _turn(project("q", head), c.rope_theta)
      k = _turn(project("k", shared), c.rope_theta)
      logits = q @ k.T / np.sqrt(c.head_dim)
      weights = np.tril(np.exp(logits))
      weights /= weights.sum(-1, keepdims=True)
      x = x + weights @ project("v", shared) @ a["out"]["kernel"][head]
    y = _rms(x, p["norm2"]["scale"])
    gate = y @ p["gate"]["kernel"]
    wide = gate / (1 + np.exp(-gate)) * (y @ p["up"]["kernel"])
    x = x + wide @ p["down"]["kernel"]
  return _rms(x, np.asarray(params["norm"]["scale"], np.float64))


def test_the_decoder_against_numpy(tiny, params, x):
  got, _ = Decoder(tiny).apply(
    {"params": params["decoder"]}, x, POSITIONS, CAUSAL
  )
  for row in range(ROWS):
    expected = _reference(
      np.asarray(x[row], np.float64), params["decoder"], tiny.decoder
    )
    np.testing.assert_allclose(got[row], expected, atol=2e-4)


def test_a_cache_continues_the_sequence(tiny, params, x):
  """The last token over the keys of the others equals the whole pass."""
  whole, (k, v) = vlm.run_decoder(tiny, params, x, POSITIONS, CAUSAL)
  cut = 3  # The first three tokens are the prompt, the next the own past.
  prompt = lambda y: jnp.swapaxes(y[:, :, :cut], 2, 3)
  # Room for two tokens, of which one is there.
  own = lambda y: jnp.swapaxes(y[:, :, cut : cut + 2], 2, 3)
  cache = Cache(prompt(k), prompt(v), own(k), own(v))
  mask = CacheMask(
    jnp.ones((ROWS, cut), bool), jnp.tile(jnp.array([True, False]), (ROWS, 1))
  )
  last, new = vlm.run_decoder(
    tiny, params, x[:, -1:], POSITIONS[:, -1:], mask, cache
  )
  np.testing.assert_allclose(last, whole[:, -1:], atol=2e-5)
  np.testing.assert_allclose(new[0], k[:, :, -1:], atol=2e-5)
  np.testing.assert_allclose(new[1], v[:, :, -1:], atol=2e-5)


def test_scan_and_remat_change_no_gradient(tiny, params, x):
  """Against the blocks called one after the other, nothing recomputed."""
  weights = params["decoder"]

  def scanned(p, remat):
    config = dataclasses.replace(tiny, remat=remat)
    y, _ = Decoder(config).apply({"params": p}, x, POSITIONS, CAUSAL)
    return jnp.sum(y * target)

  def plain(p):
    y = x
    for layer in range(tiny.decoder.layers):
      block = jax.tree.map(lambda w, layer=layer: w[layer], p["layers"])
      y, _ = Block(tiny.decoder, "float32").apply(
        {"params": block}, y, POSITIONS, CAUSAL, None
      )
    mean_square = jnp.mean(y * y, -1, keepdims=True)
    y = y / jnp.sqrt(mean_square + tiny.decoder.norm_eps)
    return jnp.sum(y * p["norm"]["scale"] * target)

  target = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape))
  expected = jax.jit(jax.grad(plain))(weights)
  for remat in ("nothing_saveable", "everything_saveable"):
    got = jax.jit(jax.grad(scanned), static_argnums=1)(weights, remat)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
      got,
      expected,
    )


def test_embeddings_are_rows_of_the_table(tiny, params):
  tokens = jnp.array([[3, 0, 31]])
  got = Embedder(tiny).apply({"params": params["embedder"]}, tokens)
  np.testing.assert_array_equal(got, params["embedder"]["table"][tokens])


def test_tied_embeddings_have_no_head(tiny):
  tied = dataclasses.replace(tiny.decoder, tied=True)
  config = dataclasses.replace(tiny, decoder=tied)
  ids = jnp.zeros((1, 1), jnp.int32)
  tree = jax.eval_shape(Embedder(config).init, jax.random.key(0), ids)
  assert set(tree["params"]) == {"table"}
