"""Logical axes of every weight: a path pattern decides, the first that fits.

Kernels under `layers/` carry a leading `layer` axis. Vision heads stay whole:
25 heads of InternViT-6B divide by no useful number of devices.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from jaxrl_mm import sharding
from jaxrl_mm.models import lora

PARAM_AXES: Sequence[tuple[str, tuple[str | None, ...]]] = (
  ("vision/patch/kernel", (None, None, None, "embed")),
  ("vision/(class|position)", (None, None, None)),
  ("vision/tubelet/kernel", (None, None, None, None, "embed")),
  ("vision/layers/attention/qkv/kernel", ("layer", "embed", None, None, None)),
  ("vision/layers/attention/qkv/bias", ("layer", None, None, None)),
  ("vision/layers/attention/out/kernel", ("layer", None, None, "embed")),
  ("vision/layers/(gate|up)/kernel", ("layer", "embed", "mlp")),
  ("vision/layers/(gate|up)/bias", ("layer", "mlp")),
  ("vision/layers/down/kernel", ("layer", "mlp", "embed")),
  ("projector/up/kernel", (None, "embed")),
  ("projector/down/kernel", (None, "embed")),
  ("embedder/(table|head)", ("vocab", "embed")),
  ("decoder/layers/attention/q/kernel", ("layer", "embed", "heads", None)),
  ("decoder/layers/attention/q/bias", ("layer", "heads", None)),
  (".*/layers/attention/[kv]/kernel", ("layer", "embed", "kv_heads", None)),
  (".*/layers/attention/[kv]/bias", ("layer", "kv_heads", None)),
  ("decoder/layers/attention/out/kernel", ("layer", "heads", None, "embed")),
  ("decoder/layers/(gate|up)/kernel", ("layer", "embed", "mlp")),
  ("decoder/layers/down/kernel", ("layer", "mlp", "embed")),
  ("value_head/kernel", ("embed",)),
  (r".*/layers/.*(scale|bias|ls1|ls2)", ("layer", None)),
  (r".*(scale|bias)", (None,)),
)  # fmt: skip


def _adapters() -> Iterator[tuple[str, tuple[str | None, ...]]]:
  """A and B lie as the sides of their kernel do; the rank stays whole."""
  for pattern, axes in PARAM_AXES:
    if not pattern.endswith("/kernel"):
      continue
    layers, inputs, outputs = lora.split_axes(pattern, axes)
    named = lambda name, p=pattern: p.removesuffix("kernel") + name
    yield named("lora_a"), (*layers, *inputs, None)
    yield named("lora_b"), (*layers, None, *outputs)
    yield named("lora_scale"), layers


def _scales() -> Iterator[tuple[str, tuple[str | None, ...]]]:
  """The scales of int8 kernels lie as the outputs of their kernel do."""
  for pattern, axes in PARAM_AXES:
    if pattern.endswith("/kernel"):
      layers, _, outputs = lora.split_axes(pattern, axes)
      yield f"{pattern}_scale", (*layers, *outputs)


def param_shardings(
  mesh: Mesh | AbstractMesh, params: Any, rules: sharding.Rules = sharding.RULES
) -> Any:
  """A NamedSharding for every weight of a model, from its shapes."""
  table = (*_adapters(), *_scales(), *PARAM_AXES)
  return sharding.by_table(mesh, params, table, rules)
