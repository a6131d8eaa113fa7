import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm.models.layers import Einsum, LayerNorm, RMSNorm


def _apply(module, x, **params):
  return np.asarray(module.apply({"params": params}, x), np.float64)


def test_einsum_is_numpys_with_a_bias():
  rng = np.random.default_rng(0)
  x, kernel, bias = (
    rng.standard_normal(s, np.float32) for s in ((2, 3, 4), (4, 5, 6), (5, 6))
  )
  module = Einsum("btd,dhe->bthe", kernel.shape, bias.shape)
  got = _apply(module, jnp.asarray(x), kernel=kernel, bias=bias)
  expected = np.einsum("btd,dhe->bthe", x, kernel) + bias
  np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
  "equation, shape, fan_in",
  [
    ("bd,df->bf", (400, 30), 400),
    ("bhe,hed->bd", (20, 20, 30), 400),
    ("bd,dche->cbhe", (400, 3, 5, 2), 400),
  ],
)
def test_the_kernel_starts_with_variance_one_over_fan_in(
  equation, shape, fan_in
):
  inputs = equation.split("->")[0].split(",")
  sizes = dict(zip(inputs[1], shape)) | {"b": 1}
  x = jnp.zeros([sizes[a] for a in inputs[0]])
  tree = Einsum(equation, shape).init(jax.random.key(0), x)["params"]
  assert set(tree) == {"kernel"}
  assert np.std(tree["kernel"]) == pytest.approx(fan_in**-0.5, rel=0.03)


def test_weights_have_the_asked_dtype_and_outputs_the_inputs():
  x = jnp.ones((2, 4), jnp.bfloat16)
  for module in (
    Einsum("bd,df->bf", (4, 3), (3,), "float32"),
    RMSNorm(1e-6, "float32"),
    LayerNorm(1e-6, "float32"),
  ):
    y, tree = module.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {w.dtype for w in jax.tree.leaves(tree)} == {jnp.dtype("float32")}


def test_rms_norm_by_hand():
  # rms([3, 4]) = sqrt(12.5); eps is added to the mean square.
  x, scale = jnp.array([[3.0, 4.0]]), np.array([1.0, 2.0])
  got = _apply(RMSNorm(12.5), x, scale=scale)
  np.testing.assert_allclose(got, [[3 / 5, 2 * 4 / 5]], rtol=1e-6)


def test_rms_norm_rounds_before_it_scales():
  # In bfloat16 the order shows: checkpoints were trained with this one.
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((8, 64)), jnp.bfloat16)
  scale = jnp.asarray(rng.standard_normal(64), jnp.bfloat16)
  wide = np.asarray(x, np.float32)
  normed = wide / np.sqrt(np.mean(wide**2, -1, keepdims=True) + 1e-6)
  expected = jnp.asarray(normed).astype(jnp.bfloat16) * scale
  got = RMSNorm(1e-6, "bfloat16").apply({"params": {"scale": scale}}, x)
  assert np.mean(got == expected) > 0.99


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_layer_norm_against_numpy_far_from_zero_too(offset):
  rng = np.random.default_rng(0)
  x = (offset + 0.1 * rng.standard_normal((4, 32))).astype(np.float32)
  scale, bias = rng.standard_normal((2, 32), np.float32)
  wide = x.astype(np.float64)
  centred = wide - wide.mean(-1, keepdims=True)
  std = np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
  got = _apply(LayerNorm(1e-5), jnp.asarray(x), scale=scale, bias=bias)
  np.testing.assert_allclose(got, centred / std * scale + bias, atol=2e-3)
