"""From the weights that are trained to the weights that are decoded with."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_mm import pytree, sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import lora
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.models.vlm import Params

# Gathering a weight for one token a row costs more than the token: no fsdp.
RULES = sharding.Rules(embed=None)
FORMS = ("model", "int8")
# Cast before they are used, by the model itself; the norms of the tower and of
# the projector are not.
_NARROW = "(embedder|decoder)/.*|(vision/layers|projector)/.*kernel"


@partial(jax.jit, static_argnames=("config", "form"))
def to_decode(
  config: ModelConfig, params: Params, form: str = "model"
) -> Params:
  """One jitted step from training layout to decode layout.

  Adapters are merged, the decoder and the kernels of the tower are cast to the
  dtype of the activations, and on the mesh in use every weight is whole over
  `data` and `fsdp` and cut over `tensor`.

  Args:
    config: of the model.
    params: as they are trained.
    form: "model", or "int8" for the decoder's kernels, with one float32 scale
      an output.
  """
  if form not in FORMS:
    raise InputError(
      f"weights for rollouts are asked for in the form '{form}'; known are "
      f"{', '.join(FORMS)}"
    )
  params = pytree.map_with_name(
    lambda name, x: (
      x.astype(config.dtype) if pytree.matches(_NARROW, name) else x
    ),
    lora.merge(params),
  )
  if form == "int8":
    params |= {"decoder": _quantize_kernels(params["decoder"], "decoder")}
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size < 2:  # A constraint would copy weights that stay as they are.
    return params
  layout = param_shardings(mesh, params, RULES)
  return jax.lax.with_sharding_constraint(params, layout)


def _quantize_kernels(tree, path):
  """The tree with int8 kernels and a `kernel_scale` beside each."""
  quantized = {}
  for name, child in tree.items():
    inside = f"{path}/{name}"
    if isinstance(child, dict):
      quantized[name] = _quantize_kernels(child, inside)
    elif name == "kernel":
      _, summed, _ = lora.split_axes(inside, tuple(range(child.ndim)))
      quantized |= _quantize(child, summed)
    else:
      quantized[name] = child
  return quantized


def _quantize(
  kernel: Float[Array, "..."], summed: tuple[int, ...]
) -> dict[str, Array]:
  """Steps of the largest entry / 127 among those summed into an output."""
  wide = kernel.astype(jnp.float32)
  scale = jnp.max(jnp.abs(wide), axis=summed, keepdims=True) / 127
  steps = jnp.round(wide / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny))
  return {
    "kernel": steps.astype(jnp.int8),
    "kernel_scale": jnp.squeeze(scale, summed),
  }
