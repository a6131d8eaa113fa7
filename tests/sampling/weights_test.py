import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import pytree, sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import lora, vlm
from jaxrl_mm.models.lora import LoraConfig
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.sampling.weights import to_decode
from jaxrl_mm.structs import Prompts

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def logp(tiny):
  """Log-probs of some tokens behind a prompt of words."""
  rng = np.random.default_rng(0)
  words = lambda *shape: jnp.asarray(rng.integers(1, 29, shape))
  prompts = Prompts(words(4, 6), jnp.ones((4, 6), bool), None, jnp.arange(4))
  run = partial(vlm.completion_logp, tiny, image_token=31)
  tokens, mask = words(4, 5), jnp.ones((4, 5), bool)
  score = jax.jit(lambda params: run(params, prompts, tokens, mask)[0])
  return lambda params: np.asarray(score(params))


def test_adapters_are_merged_and_the_decoder_is_cast(tiny, params, logp):
  adapted = lora.attach(LoraConfig(rank=2), params, jax.random.key(0))
  filled = pytree.map_with_name(
    lambda name, x: x + 0.1 if name.endswith("lora_b") else x, adapted
  )
  merged = to_decode(tiny, filled)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  np.testing.assert_allclose(logp(merged), logp(filled), atol=1e-5)
  assert np.abs(logp(merged) - logp(params)).max() > 0.1
  narrow = to_decode(dataclasses.replace(tiny, dtype="bfloat16"), params)
  kinds = {name: leaf.dtype for name, leaf in pytree.named_leaves(narrow)}
  for name, dtype in kinds.items():
    decoding = name.startswith(("decoder", "embedder"))
    product = name.startswith(("vision/layers", "projector"))
    product = product and name.endswith("kernel")
    assert dtype == (jnp.bfloat16 if decoding or product else jnp.float32), name


def test_casting_changes_no_feature(tiny, params):
  narrow = dataclasses.replace(tiny, dtype="bfloat16")
  random = np.random.default_rng(0)
  images = jnp.asarray(random.integers(0, 256, (2, 3, 8, 8, 3), np.uint8))
  see = jax.jit(partial(vlm.encode_images, narrow))
  got = see(to_decode(narrow, params), images)
  np.testing.assert_array_equal(got, see(params, images))


def test_int8_kernels_are_within_half_a_step(tiny, params):
  layers = to_decode(tiny, params, "int8")["decoder"]["layers"]
  plain = params["decoder"]["layers"]
  for path, summed in {
    "gate": 1,
    "attention/q": 1,
    "attention/out": (1, 2),
  }.items():
    got, kernel = layers, plain
    for part in path.split("/"):
      got, kernel = got[part], kernel[part]
    assert got["kernel"].dtype == jnp.int8
    step = np.abs(kernel["kernel"]).max(summed, keepdims=True) / 127
    np.testing.assert_allclose(
      np.expand_dims(got["kernel_scale"], summed), step, rtol=1e-6
    )
    error = np.abs(got["kernel"] * step - kernel["kernel"])
    assert (error <= step / 2 * 1.001).all() and error.max() > 0


def test_int8_kernels_give_nearly_the_same_log_probs(tiny, params, logp):
  got = logp(to_decode(tiny, params, "int8"))
  gap = np.abs(got - logp(params))
  # Measured: 0.009 in the mean, 0.04 at most.
  assert 0 < gap.mean() < 0.03 and gap.max() < 0.1


@pytest.mark.parametrize("form", ["model", "int8"])
def test_on_a_mesh_weights_are_cut_over_tensor_alone(tiny, params, logp, form):
  mesh = sharding.make_mesh(1, 4, 2)
  trained = jax.device_put(params, param_shardings(mesh, params))
  with jax.set_mesh(mesh):
    got = to_decode(tiny, trained, form)
  here = to_decode(tiny, params, form)
  for (name, leaf), (_, alone) in zip(
    pytree.named_leaves(got), pytree.named_leaves(here)
  ):
    axes = set(jax.tree.leaves(tuple(leaf.sharding.spec)))
    assert axes <= {"tensor"}, name
    np.testing.assert_array_equal(leaf, alone, err_msg=name)
  assert "tensor" in got["decoder"]["layers"]["up"]["kernel"].sharding.spec
  np.testing.assert_allclose(logp(got), logp(here), atol=1e-5)


def test_an_unknown_form_is_told(tiny, params):
  with pytest.raises(InputError, match="'int4'; known are model, int8"):
    to_decode(tiny, params, "int4")
