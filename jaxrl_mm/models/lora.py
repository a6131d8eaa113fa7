"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685).

An adapted kernel W has `lora_a`, `lora_b` and `lora_scale` beside it and acts
as W + scale * A B. The adapters are leaves of the same tree: the pattern
`.*/lora_[ab]` trains, saves and differentiates them alone.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxrl_mm import pytree
from jaxrl_mm.errors import InputError

Axes = tuple[Any, ...]  # sizes or names
NAMES = ("lora_a", "lora_b", "lora_scale")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Which kernels get adapters.

  Attributes:
    rank: columns of A.
    alpha: the product A B counts alpha / rank times.
    targets: pattern over whole paths of kernels.
  """

  rank: int = 16
  alpha: float = 32.0
  targets: str = "decoder/layers/.*/kernel"


def attach(config: LoraConfig, params: dict, key: PRNGKeyArray) -> dict:
  """The tree with adapters beside each targeted kernel, in its dtype.

  A is normal with variance 1 / fan-in and B zero, so nothing changes at first.

  Raises:
    InputError: no kernel matches.
  """
  kernels = pytree.named_leaves(pytree.split(params, config.targets)[0])
  if not kernels:
    raise InputError(
      f"config.lora.targets '{config.targets}' matches no kernel; it is a "
      "pattern over whole paths such as 'decoder/layers/attention/q/kernel'"
    )
  for (name, kernel), k in zip(kernels, jax.random.split(key, len(kernels))):
    stack, inputs, outputs = split_axes(name, kernel.shape)
    scale = jnp.full(stack, config.alpha / config.rank, jnp.float32)
    a = jax.random.normal(k, (*stack, *inputs, config.rank), kernel.dtype)
    adapter = {
      "lora_a": a * math.prod(inputs) ** -0.5,
      "lora_b": jnp.zeros((*stack, config.rank, *outputs), kernel.dtype),
      "lora_scale": scale,
    }
    for part in reversed(name.split("/")[:-1]):
      adapter = {part: adapter}
    params = pytree.join(params, adapter)
  return params


def split_axes(name: str, axes: Axes) -> tuple[Axes, Axes, Axes]:
  """The axes of a kernel that count layers, that are summed, and the others.

  Every kernel is written that way round; the attention output alone sums over
  two axes, heads and head width.
  """
  layers = 1 if "/layers/" in name else 0
  summed = layers + (2 if name.endswith("attention/out/kernel") else 1)
  return axes[:layers], axes[layers:summed], axes[summed:]


def merge(params: dict) -> dict:
  """The tree without adapters, each added to its kernel."""
  merged = {}
  for name, child in params.items():
    if isinstance(child, dict):
      merged[name] = merge(child)
    elif name not in NAMES:
      merged[name] = child
  if "lora_a" in params:
    merged["kernel"] = _add(params["kernel"], *(params[n] for n in NAMES))
  return merged


def _add(
  kernel: Float[Array, "..."],
  a: Float[Array, "..."],
  b: Float[Array, "..."],
  scale: Float[Array, "*stack"],
) -> Float[Array, "..."]:
  """kernel + scale * A B, computed in float32."""
  rank, stack = a.shape[-1], scale.shape
  wide = lambda x, *shape: x.astype(jnp.float32).reshape(*stack, *shape)
  product = wide(a, -1, rank) @ wide(b, rank, -1)
  product = product * scale[..., None, None]
  total = kernel.astype(jnp.float32) + product.reshape(kernel.shape)
  return total.astype(kernel.dtype)
