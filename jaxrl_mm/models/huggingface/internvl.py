"""InternVL 2.5 and 3, Skywork R1V: the layout of their own code, and that of
transformers.

Their own code (`internvl_chat`, `skywork_chat`) has `vision_model`, `mlp1`,
`language_model` and fused qkv; transformers (`internvl`) has `vision_tower`,
`multi_modal_projector`, `language_model` and q, k, v apart.
"""

from collections.abc import Collection, Mapping
from typing import Any

from jaxrl_mm.errors import InputError
from jaxrl_mm.models.config import ModelConfig, VisionConfig
from jaxrl_mm.models.huggingface import text
from jaxrl_mm.models.huggingface.fields import allow, need
from jaxrl_mm.models.huggingface.tables import Entry

UNUSED = (*text.UNUSED, r".*embeddings\.mask_token")

# Our name, the name in their own code, the name in transformers, the axes.
_TOWER = (
  ("class", "class_embedding", "cls_token", "a b d = a b d"),
  (
    "position",
    "position_embedding",
    "position_embeddings",
    "a p d = a p d",
  ),
  (
    "patch/kernel",
    "patch_embedding.weight",
    "patch_embeddings.projection.weight",
    "p q c d = d c p q",
  ),
  (
    "patch/bias",
    "patch_embedding.bias",
    "patch_embeddings.projection.bias",
    "d = d",
  ),
)
_LAYER = (
  ("norm1/scale", "norm1.weight", "layernorm_before.weight", "l d = d"),
  ("norm2/scale", "norm2.weight", "layernorm_after.weight", "l d = d"),
  ("ls1", "ls1", "lambda_1", "l d = d"),
  ("ls2", "ls2", "lambda_2", "l d = d"),
  (
    "attention/out/kernel",
    "attn.proj.weight",
    "attention.projection_layer.weight",
    "l h e d = d (h e)",
  ),
  (
    "attention/out/bias",
    "attn.proj.bias",
    "attention.projection_layer.bias",
    "l d = d",
  ),
  ("up/kernel", "mlp.fc1.weight", "mlp.fc1.weight", "l d f = f d"),
  ("up/bias", "mlp.fc1.bias", "mlp.fc1.bias", "l f = f"),
  ("down/kernel", "mlp.fc2.weight", "mlp.fc2.weight", "l f d = d f"),
  ("down/bias", "mlp.fc2.bias", "mlp.fc2.bias", "l d = d"),
)
_LAYER_NORM = (
  ("norm1/bias", "norm1.bias", "layernorm_before.bias", "l d = d"),
  ("norm2/bias", "norm2.bias", "layernorm_after.bias", "l d = d"),
)
_QK_NORM = (
  (
    "attention/q_norm/scale",
    "attn.q_norm.weight",
    "attention.q_norm.weight",
    "l d = d",
  ),
  (
    "attention/k_norm/scale",
    "attn.k_norm.weight",
    "attention.k_norm.weight",
    "l d = d",
  ),
)
_PROJECTOR = (
  ("norm/scale", "0.weight", "layer_norm.weight", "c = c"),
  ("norm/bias", "0.bias", "layer_norm.bias", "c = c"),
  ("up/kernel", "1.weight", "linear_1.weight", "c d = d c"),
  ("up/bias", "1.bias", "linear_1.bias", "d = d"),
  ("down/kernel", "3.weight", "linear_2.weight", "c d = d c"),
  ("down/bias", "3.bias", "linear_2.bias", "d = d"),
)


def read_config(json: Mapping[str, Any]) -> ModelConfig:
  """The model, from the config.json of either layout.

  Raises:
    InputError: a field is missing, or has a value we cannot honour.
  """
  own = need(json, "model_type", "config.json") != "internvl"
  inner = "llm_config" if own else "text_config"
  decoder = need(json, inner, "config.json")
  vision = need(json, "vision_config", "config.json")
  if own:
    _refuse_own(json)
    allow(json, "force_image_size", (vision.get("image_size"),), "config.json")
  else:
    _refuse_transformers(json, vision)
    # Their own code ties by the inner value, transformers by the outer one.
    outer = json.get("tie_word_embeddings")
    if outer is not None:
      decoder = decoder | {"tie_word_embeddings": outer}
  return ModelConfig(
    vision=_read_vision(vision),
    decoder=text.read_decoder(decoder, f"config.json's {inner}"),
    shuffle=_shuffle(json.get("downsample_ratio", 0.5)),
  )


def _refuse_own(json):
  need(json, "ps_version", "config.json")  # absent means v1
  known = {
    "ps_version": "v2",
    "select_layer": -1,
    "pad2square": False,
    "use_thumbnail": True,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
  }
  for name, value in known.items():
    allow(json, name, (value,), "config.json")


def _refuse_transformers(json, vision):
  allow(json, "vision_feature_layer", (-1,), "config.json")
  allow(json, "vision_feature_select_strategy", ("default",), "config.json")
  allow(json, "projector_hidden_act", ("gelu",), "config.json")
  where = "config.json's vision_config"
  allow(vision, "use_mean_pooling", (True,), where)
  allow(vision, "use_absolute_position_embeddings", (True,), where)


def _read_vision(json):
  """Both layouts at once; where names differ, the first that is there."""
  where = "config.json's vision_config"
  first = lambda default, *names: next(
    (json[name] for name in names if name in json), default
  )
  allow(json, "hidden_act", ("gelu",), where)
  allow(json, "num_channels", (3,), where)
  allow(json, "norm_type", ("rms_norm", "layer_norm"), where)
  own = json.get("model_type") != "internvl_vision"
  # A field that is absent has the default of the class that wrote the file.
  norm = json.get("norm_type", "rms_norm" if own else "layer_norm")
  return VisionConfig(
    layers=need(json, "num_hidden_layers", where),
    width=need(json, "hidden_size", where),
    heads=need(json, "num_attention_heads", where),
    mlp=need(json, "intermediate_size", where),
    image_size=_side(need(json, "image_size", where), where),
    patch_size=_side(need(json, "patch_size", where), where),
    norm_eps=json.get("layer_norm_eps", 1e-6),
    layer_scale=first(0.1, "initializer_factor", "layer_scale_init_value"),
    norm=norm.removesuffix("_norm"),
    qk_norm=first(own, "qk_normalization", "use_qk_norm"),
    qkv_bias=first(False, "qkv_bias", "attention_bias"),
  )


def _side(size, where):
  """Pixels along one side; transformers writes both sides."""
  sides = set(size) if isinstance(size, list | tuple) else {size}
  if len(sides) > 1:
    raise InputError(f"{where} has sides of {size} and tiles must be square")
  return sides.pop()


def _shuffle(ratio):
  if not 0 < ratio <= 1 or (1 / ratio) % 1:
    raise InputError(
      f"config.json has downsample_ratio = {ratio}, which is not 1 over a "
      "whole number; choose another checkpoint"
    )
  return int(1 / ratio)


def table(config: ModelConfig, names: Collection[str]) -> tuple[Entry, ...]:
  """One line for each weight.

  Args:
    config: the model.
    names: of the checkpoint's tensors; they tell its layout.
  """
  # InternViT is published by itself too, and its names have no prefix then.
  alone = any(name.startswith("embeddings.") for name in names)
  own = alone or any(name.startswith("vision_model.") for name in names)
  # Since its version 4.52 transformers puts all but the head inside `model`.
  inside = any(name.startswith("model.") for name in names)
  root = "model." if inside else ""
  tower = "vision_model." if own else f"{root}vision_tower."
  language = f"{root}language_model." + ("" if inside else "model.")
  head = ("" if inside else "language_model.") + "lm_head.weight"
  return (
    *_tower_entries(config.vision, own, "" if alone else tower),
    *_projector_entries(own, root),
    *text.decoder_entries(config.decoder, language, head),
  )


def _tower_entries(v: VisionConfig, own: bool, tower: str):
  layer = f"{tower}encoder.layer{'s' if own else ''}.{{l}}."
  rows = (
    *_LAYER,
    *(_LAYER_NORM if v.norm == "layer" else ()),
    *(_QK_NORM if v.qk_norm else ()),
  )
  return (
    *_lines("vision/", _TOWER, own, f"{tower}embeddings."),
    *_lines("vision/layers/", rows, own, layer),
    *_qkv_entries(v, own, layer),
  )


def _qkv_entries(v: VisionConfig, own: bool, layer: str):
  theirs = "attn.qkv" if own else "attention.{c:q_proj|k_proj|v_proj}"
  rows = "(c h e)" if own else "(h e)"
  ours = "vision/layers/attention/qkv"
  yield Entry(
    f"{ours}/kernel", f"{layer}{theirs}.weight", f"l d c h e = {rows} d"
  )
  if v.qkv_bias:
    yield Entry(f"{ours}/bias", f"{layer}{theirs}.bias", f"l c h e = {rows}")


def _projector_entries(own: bool, root: str):
  prefix = "mlp1." if own else f"{root}multi_modal_projector."
  return _lines("projector/", _PROJECTOR, own, prefix)


def _lines(ours, rows, own, prefix):
  return tuple(
    Entry(ours + name, prefix + (theirs if own else other), axes)
    for name, theirs, other, axes in rows
  )
