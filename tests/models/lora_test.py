import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import pytree, sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import lora, vlm
from jaxrl_mm.models.lora import LoraConfig
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.structs import Prompts

pytestmark = pytest.mark.usefixtures("quick_compile")

EVERYWHERE = LoraConfig(rank=3, alpha=6.0, targets=".*/(layers|up)/.*kernel")


@pytest.fixture(scope="module")
def adapted(params):
  """Adapters on tower, projector and decoder, none of them zero."""
  tree = lora.attach(EVERYWHERE, params, jax.random.key(0))
  rng = np.random.default_rng(0)
  fill = lambda name, x: (
    jnp.asarray(0.1 * rng.standard_normal(x.shape, np.float32))
    if name.endswith("lora_b")
    else x
  )
  return pytree.map_with_name(fill, tree)


@pytest.fixture(scope="module")
def logp(tiny):
  rng = np.random.default_rng(1)
  tokens = jnp.asarray([[1, 2, 31, 31, 31, 31, 3]])
  images = jnp.asarray(rng.integers(256, size=(1, 1, 8, 8, 3)), jnp.uint8)
  mask = jnp.ones(tokens.shape, bool)
  prompts = Prompts(tokens, mask, images, jnp.zeros(1, int))
  answer = jnp.asarray([[4, 5, 6]])

  def score(params):
    return vlm.completion_logp(
      tiny, params, prompts, answer, answer > 0, image_token=31
    )[0]

  return jax.jit(score)


def test_new_adapters_change_nothing(params, logp):
  fresh = lora.attach(EVERYWHERE, params, jax.random.key(0))
  names = [n for n, _ in pytree.named_leaves(fresh) if n.endswith("lora_a")]
  assert len(names) == 4 + 7 + 1
  np.testing.assert_array_equal(logp(fresh), logp(params))


def test_adapters_act_as_their_merged_kernels(params, adapted, logp):
  merged = lora.merge(adapted)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  assert np.abs(logp(merged) - logp(params)).max() > 0.1
  np.testing.assert_allclose(logp(merged), logp(adapted), atol=1e-4)


def test_a_merged_kernel_by_hand(adapted, params):
  attention = adapted["decoder"]["layers"]["attention"]["out"]
  before = params["decoder"]["layers"]["attention"]["out"]["kernel"]
  got = lora.merge(attention)["kernel"]
  product = np.einsum(
    "her,rd->hed", attention["lora_a"][1], attention["lora_b"][1]
  )
  np.testing.assert_allclose(got[1], before[1] + 2 * product, atol=1e-6)


def test_only_adapters_have_gradients(adapted, logp):
  trained, frozen = pytree.split(adapted, ".*/lora_[ab]")
  assert len(jax.tree.leaves(trained)) == 24
  loss = lambda part: jnp.sum(logp(pytree.join(part, frozen)))
  gradient = jax.grad(loss)(trained)
  assert all(jnp.any(g != 0) for g in jax.tree.leaves(gradient))


def test_adapters_lie_as_their_kernels_do(adapted):
  mesh = sharding.make_mesh(2, 2, 2)
  placed = param_shardings(mesh, adapted)["decoder"]["layers"]["attention"]
  assert placed["q"]["lora_a"].spec == jax.P(None, ("fsdp", "sequence"), None)
  assert placed["q"]["lora_b"].spec == jax.P(None, None, "tensor", None)
  assert placed["out"]["lora_a"].spec == jax.P(None, "tensor", None, None)
  assert placed["out"]["lora_scale"].spec == jax.P(None)


def test_a_pattern_without_a_kernel_is_named(params):
  with pytest.raises(InputError, match="'nothing' matches no kernel"):
    lora.attach(LoraConfig(targets="nothing"), params, jax.random.key(0))
