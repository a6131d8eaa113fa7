"""Qwen2.5-VL of all sizes, and Skywork-VL Reward, which adds a value head.

Published checkpoints have `visual` and `model`; transformers since 4.52 saves
`model.visual` and `model.language_model`.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from jaxrl_mm.errors import InputError
from jaxrl_mm.models.config import (
  DecoderConfig,
  ModelConfig,
  QwenVisionConfig,
)
from jaxrl_mm.models.huggingface import text
from jaxrl_mm.models.huggingface.fields import allow, need
from jaxrl_mm.models.huggingface.tables import Entry

UNUSED = text.UNUSED

_VISION = "config.json's vision_config"
_FULL_LAYERS = (7, 15, 23, 31)

_LAYER = (
  ("norm1/scale", "norm1.weight", "l d = d"),
  ("norm2/scale", "norm2.weight", "l d = d"),
  ("attention/qkv/kernel", "attn.qkv.weight", "l d c h e = (c h e) d"),
  ("attention/qkv/bias", "attn.qkv.bias", "l c h e = (c h e)"),
  ("attention/out/kernel", "attn.proj.weight", "l h e d = d (h e)"),
  ("attention/out/bias", "attn.proj.bias", "l d = d"),
  ("gate/kernel", "mlp.gate_proj.weight", "l d f = f d"),
  ("gate/bias", "mlp.gate_proj.bias", "l f = f"),
  ("up/kernel", "mlp.up_proj.weight", "l d f = f d"),
  ("up/bias", "mlp.up_proj.bias", "l f = f"),
  ("down/kernel", "mlp.down_proj.weight", "l f d = d f"),
  ("down/bias", "mlp.down_proj.bias", "l d = d"),
)
_MERGER = (
  ("norm/scale", "ln_q.weight", "d = d"),
  ("up/kernel", "mlp.0.weight", "i o = o i"),
  ("up/bias", "mlp.0.bias", "o = o"),
  ("down/kernel", "mlp.2.weight", "i o = o i"),
  ("down/bias", "mlp.2.bias", "o = o"),
)
_VALUE_HEAD = (
  Entry("value_head/kernel", "v_head.summary.weight", "d = 1 d"),
  Entry("value_head/bias", "v_head.summary.bias", "o = o"),
)


def read_config(json: Mapping[str, Any]) -> ModelConfig:
  """The model, from a config.json with the decoder's fields inside
  `text_config` or, as in the published ones, beside `vision_config`.

  Raises:
    InputError: a field is missing, or has a value we cannot honour.
  """
  vision = need(json, "vision_config", "config.json")
  decoder = json.get("text_config") or json
  # The outer field counts; transformers 4 left it inside.
  tied = json.get("tie_word_embeddings") or decoder.get("tie_word_embeddings")
  config = ModelConfig(
    vision=_read_vision(vision),
    decoder=_read_decoder({**decoder, "tie_word_embeddings": bool(tied)}),
    shuffle=vision.get("spatial_merge_size", 2),
  )
  allow(vision, "out_hidden_size", (config.decoder.width,), _VISION)
  return config


def _read_vision(json: Mapping[str, Any]) -> QwenVisionConfig:
  allow(json, "hidden_act", ("silu",), _VISION)
  patch = json.get("patch_size", 14)
  return QwenVisionConfig(
    layers=json.get("depth", 32),
    width=need(json, "hidden_size", _VISION),
    heads=json.get("num_heads", 16),
    mlp=json.get("intermediate_size", 3420),
    full_layers=tuple(json.get("fullatt_block_indexes", _FULL_LAYERS)),
    patch_size=patch,
    window=json.get("window_size", 112) // patch,
    frames=json.get("temporal_patch_size", 2),
    channels=json.get("in_channels", json.get("in_chans", 3)),
  )


def _read_decoder(json: Mapping[str, Any]) -> DecoderConfig:
  """The decoder of Qwen2 but for positions along three axes."""
  where = "config.json"
  rope = json.get("rope_parameters") or json.get("rope_scaling") or {}
  kind = rope.get("rope_type", rope.get("type"))
  if kind not in ("mrope", "default") or "mrope_section" not in rope:
    raise InputError(
      f"{where} has rotary positions of the kind {kind!r}, and Qwen2.5-VL has "
      "'mrope' with an mrope_section; choose another checkpoint"
    )
  theta = rope.get("rope_theta") or json.get("rope_theta") or 1e6
  plain = {"rope_type": "default", "rope_theta": theta}
  decoder = text.read_decoder(
    {**json, "model_type": "qwen2", "rope_parameters": plain}, where
  )
  sections = tuple(rope["mrope_section"])
  return dataclasses.replace(decoder, rope_sections=sections)


def table(config: ModelConfig, names: Collection[str]) -> tuple[Entry, ...]:
  """One line for each weight.

  Args:
    config: the model.
    names: of the checkpoint's tensors; they tell its layout.
  """
  inside = any(name.startswith("model.visual.") for name in names)
  visual = "model.visual." if inside else "visual."
  language = "model.language_model." if inside else "model."
  return (
    Entry(
      "vision/tubelet/kernel",
      f"{visual}patch_embed.proj.weight",
      "t p q c d = d c t p q",
    ),
    *_lines("vision/layers/", _LAYER, f"{visual}blocks.{{l}}."),
    *_lines("projector/", _MERGER, f"{visual}merger."),
    *text.decoder_entries(config.decoder, language, "lm_head.weight"),
    *(_VALUE_HEAD if config.value_head else ()),
  )


def _lines(ours, rows, theirs):
  return tuple(Entry(ours + a, theirs + b, axes) for a, b, axes in rows)
