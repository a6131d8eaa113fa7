import dataclasses
from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm.models import internvit
from jaxrl_mm.models.internvit import Block, InternViT, Projector

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_normalize_standardises_bytes_by_imagenet_statistics():
  images = np.array([[0, 128, 255]], np.uint8).reshape(1, 1, 1, 3)
  got = internvit.normalize(jnp.asarray(images), jnp.dtype("float32"))
  expected = [
    (0 - 0.485) / 0.229,
    (128 / 255 - 0.456) / 0.224,
    (1 - 0.406) / 0.225,
  ]
  np.testing.assert_allclose(got.ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize("factor, side", [(2, 4), (3, 6)])
def test_pixel_shuffle_by_its_formula(factor, side):
  width = 5
  x = np.arange(2 * side * side * width).reshape(2, side, side, width)
  got = internvit.pixel_shuffle(jnp.asarray(x, jnp.float32), factor)
  small = side // factor
  assert got.shape == (2, small, small, factor**2 * width)
  for n, i, j, di, dj, d in np.ndindex(2, small, small, factor, factor, width):
    assert (
      got[n, i, j, (di * factor + dj) * width + d]
      == x[n, factor * i + di, factor * j + dj, d]
    )


# A second InternViT in numpy: loops over layers and heads, as the paper's code.
def _rms(x, scale, eps=1e-6):
  return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * scale


def _gelu(x):
  return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def _norm(x, p, eps=1e-6):
  """RMS without a bias, else the norm that centres."""
  if "bias" not in p:
    return _rms(x, p["scale"], eps)
  x = x - x.mean(-1, keepdims=True)
  return _rms(x, p["scale"], eps) + p["bias"]


def _attention(x, p, heads):
  qkv = np.einsum("md,dche->mche", x, p["qkv"]["kernel"])
  q, k, v = np.moveaxis(qkv + p["qkv"].get("bias", 0), 1, 0)
  if "q_norm" in p:
    # The norm is over all heads at once, not over each head.
    q = _rms(q.reshape(len(x), -1), p["q_norm"]["scale"]).reshape(q.shape)
    k = _rms(k.reshape(len(x), -1), p["k_norm"]["scale"]).reshape(k.shape)
  out = np.zeros(q.shape)
  for h in range(heads):
    logits = q[:, h] @ k[:, h].T / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    out[:, h] = weights / weights.sum(-1, keepdims=True) @ v[:, h]
  return np.einsum("mhe,hed->md", out, p["out"]["kernel"]) + p["out"]["bias"]


def _tower(image, params, config):
  c = config.vision
  pixels = (image / 255 - internvit.MEAN) / np.array(internvit.STD)
  patches = [
    np.einsum(
      "pqc,pqcd->d",
      pixels[i : i + c.patch_size, j : j + c.patch_size],
      params["patch"]["kernel"],
    )
    + params["patch"]["bias"]
    for i in range(0, c.image_size, c.patch_size)
    for j in range(0, c.image_size, c.patch_size)
  ]
  x = np.stack([params["class"][0, 0], *patches]) + params["position"][0]
  for layer in range(c.layers):
    p = jax.tree.map(lambda w, layer=layer: w[layer], params["layers"])
    y = _attention(_norm(x, p["norm1"]), p["attention"], c.heads)
    x = x + p["ls1"] * y
    y = _norm(x, p["norm2"]) @ p["up"]["kernel"] + p["up"]["bias"]
    y = _gelu(y) @ p["down"]["kernel"] + p["down"]["bias"]
    x = x + p["ls2"] * y
  return x[1:].reshape(c.side, c.side, c.width)


def test_the_tower_against_numpy(tiny, params):
  """QK-norm over the full width, layer scale, and no norm at the end."""
  images = np.random.default_rng(0).integers(256, size=(2, 8, 8, 3))
  images = images.astype(np.uint8)
  wide = jax.tree.map(lambda w: np.asarray(w, np.float64), params["vision"])
  got = InternViT(tiny).apply({"params": params["vision"]}, jnp.asarray(images))
  for mine, image in zip(got, images):
    np.testing.assert_allclose(mine, _tower(image, wide, tiny), atol=2e-4)


def test_the_small_tower_against_numpy(tiny):
  """The 300M tower: LayerNorm, biases of q, k and v, no norm of q and k."""
  small = {"norm": "layer", "qk_norm": False, "qkv_bias": True}
  vision = dataclasses.replace(tiny.vision, **small)
  config = dataclasses.replace(tiny, vision=vision)
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(2, 8, 8, 3)).astype(np.uint8)
  tower = InternViT(config)
  shapes = jax.eval_shape(tower.init, jax.random.key(0), images)["params"]
  weights = jax.tree.map(
    lambda x: 0.15 * rng.standard_normal(x.shape, np.float32), shapes
  )
  assert weights["layers"]["attention"].keys() == {"qkv", "out"}
  wide = jax.tree.map(lambda w: w.astype(np.float64), weights)
  got = tower.apply({"params": weights}, jnp.asarray(images))
  for mine, image in zip(got, images):
    np.testing.assert_allclose(mine, _tower(image, wide, config), atol=2e-4)


def test_the_projector_against_numpy(tiny, params):
  p = jax.tree.map(lambda w: np.asarray(w, np.float64), params["projector"])
  x = np.random.default_rng(0).standard_normal((1, 4, 4, 64), np.float32)
  tokens = np.stack(
    [
      x[0, i : i + 2, j : j + 2].reshape(-1).astype(np.float64)
      for i in (0, 2)
      for j in (0, 2)
    ]
  )
  y = tokens - tokens.mean(-1, keepdims=True)
  y = y / np.sqrt(tokens.var(-1, keepdims=True) + 1e-5)
  y = y * p["norm"]["scale"] + p["norm"]["bias"]
  y = _gelu(y @ p["up"]["kernel"] + p["up"]["bias"])
  y = y @ p["down"]["kernel"] + p["down"]["bias"]
  got = Projector(tiny).apply({"params": params["projector"]}, jnp.asarray(x))
  np.testing.assert_allclose(got[0], y, atol=2e-4)


def test_layer_scale_starts_at_its_constant(tiny):
  vision = dataclasses.replace(tiny.vision, layer_scale=0.25)
  block = Block(vision, "float32")
  x = jnp.zeros((1, 17, vision.width))
  tree = block.init(jax.random.key(0), x, None)["params"]
  for name in ("ls1", "ls2"):
    np.testing.assert_array_equal(tree[name], np.full(vision.width, 0.25))


def test_rematerialisation_changes_no_gradient(tiny, params):
  image = jnp.asarray(
    np.random.default_rng(0).integers(256, size=(1, 8, 8, 3)), jnp.uint8
  )

  def gradient(remat):
    model = InternViT(dataclasses.replace(tiny, remat=remat))
    loss = lambda p: jnp.sum(model.apply({"params": p}, image) ** 2)
    return jax.jit(jax.grad(loss))(params["vision"])

  kept, recomputed = map(gradient, ("everything_saveable", "nothing_saveable"))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-2),
    kept,
    recomputed,
  )
