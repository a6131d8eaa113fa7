"""Decoders alone: Qwen2, Qwen2.5, QwQ, Qwen3, Llama, SmolLM2."""

from collections.abc import Collection, Mapping
from typing import Any

from jaxrl_mm.errors import InputError
from jaxrl_mm.models.config import DecoderConfig, ModelConfig
from jaxrl_mm.models.huggingface.fields import allow, need
from jaxrl_mm.models.huggingface.tables import Entry

# What a checkpoint may carry and no weight of ours is made of. A model that
# ties its embeddings may store the output ones all the same.
UNUSED = (r".*rotary_emb\.inv_freq", r"(.*\.)?lm_head\.weight")

_LAYER = (
  ("norm1/scale", "input_layernorm.weight", "l d = d"),
  ("norm2/scale", "post_attention_layernorm.weight", "l d = d"),
  ("attention/q/kernel", "self_attn.q_proj.weight", "l d h e = (h e) d"),
  ("attention/k/kernel", "self_attn.k_proj.weight", "l d h e = (h e) d"),
  ("attention/v/kernel", "self_attn.v_proj.weight", "l d h e = (h e) d"),
  ("attention/out/kernel", "self_attn.o_proj.weight", "l h e d = d (h e)"),
  ("gate/kernel", "mlp.gate_proj.weight", "l d f = f d"),
  ("up/kernel", "mlp.up_proj.weight", "l d f = f d"),
  ("down/kernel", "mlp.down_proj.weight", "l f d = d f"),
)
_QKV_BIAS = (
  ("attention/q/bias", "self_attn.q_proj.bias", "l h e = (h e)"),
  ("attention/k/bias", "self_attn.k_proj.bias", "l h e = (h e)"),
  ("attention/v/bias", "self_attn.v_proj.bias", "l h e = (h e)"),
)
_QK_NORM = (
  ("attention/q_norm/scale", "self_attn.q_norm.weight", "l e = e"),
  ("attention/k_norm/scale", "self_attn.k_norm.weight", "l e = e"),
)


def read_config(json: Mapping[str, Any]) -> ModelConfig:
  """A model of text alone, from its config.json.

  Raises:
    InputError: a field is missing, or has a value we cannot honour.
  """
  return ModelConfig(vision=None, decoder=read_decoder(json, "config.json"))


def read_decoder(json: Mapping[str, Any], where: str) -> DecoderConfig:
  """The decoder's sizes and options.

  Args:
    json: the part of config.json that describes the decoder.
    where: what to call that part in messages.
  """
  kind = need(json, "model_type", where)
  allow(json, "model_type", ("qwen2", "qwen3", "llama"), where)
  _refuse(json, where)
  heads = need(json, "num_attention_heads", where)
  width = need(json, "hidden_size", where)
  per_head = 128 if kind == "qwen3" else width // heads
  return DecoderConfig(
    layers=need(json, "num_hidden_layers", where),
    width=width,
    heads=heads,
    kv_heads=json.get("num_key_value_heads") or heads,
    head_dim=json.get("head_dim") or per_head,
    mlp=need(json, "intermediate_size", where),
    vocab=need(json, "vocab_size", where),
    tied=json.get("tie_word_embeddings", False),
    rope_theta=_theta(json, where),
    norm_eps=json.get("rms_norm_eps", 1e-6),
    qkv_bias=kind == "qwen2",
    qk_norm=kind == "qwen3",
  )


def _refuse(json, where):
  allow(json, "hidden_act", ("silu",), where)
  for name in ("attention_bias", "mlp_bias"):
    allow(json, name, (False,), where)
  layers = json.get("layer_types") or ["full_attention"]
  windows = json.get("use_sliding_window") and (
    json.get("max_window_layers", 0) < json["num_hidden_layers"]
  )
  if windows or set(layers) != {"full_attention"}:
    raise InputError(
      f"{where} has use_sliding_window = {json.get('use_sliding_window')} and "
      f"layer_types = {sorted(set(layers))}, and this decoder attends to the "
      "whole sequence; choose a checkpoint without windows"
    )


def _theta(json, where):
  """Base of the rotary frequencies, under its new name or its old one.

  "dynamic" scales nothing up to max_position_embeddings.
  """
  rope = json.get("rope_parameters") or json.get("rope_scaling") or {}
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ("default", "dynamic"):
    raise InputError(
      f"{where} scales its rotary positions by '{kind}' and this decoder knows "
      "only 'default' and 'dynamic'; choose another checkpoint"
    )
  return float(rope.get("rope_theta") or json.get("rope_theta") or 1e4)


def table(config: ModelConfig, names: Collection[str]) -> tuple[Entry, ...]:
  """One line for each weight.

  Args:
    config: the model.
    names: of the checkpoint's tensors; `model.` stands before them unless the
      decoder was saved without its head.
  """
  inside = any(name.startswith("model.") for name in names)
  prefix = "model." if inside else ""
  return decoder_entries(config.decoder, prefix, "lm_head.weight")


def decoder_entries(
  c: DecoderConfig, prefix: str, head: str
) -> tuple[Entry, ...]:
  """The lines of embeddings, layers and last norm.

  Args:
    c: the decoder.
    prefix: what stands before the names of embeddings, layers and norm.
    head: name of the output embeddings.
  """
  layer = (
    *_LAYER,
    *(_QKV_BIAS if c.qkv_bias else ()),
    *(_QK_NORM if c.qk_norm else ()),
  )
  own_head = () if c.tied else (Entry("embedder/head", head, "v d = v d"),)
  return (
    Entry("embedder/table", f"{prefix}embed_tokens.weight", "v d = v d"),
    *own_head,
    *(
      Entry(f"decoder/layers/{ours}", f"{prefix}layers.{{l}}.{theirs}", axes)
      for ours, theirs, axes in layer
    ),
    Entry("decoder/norm/scale", f"{prefix}norm.weight", "d = d"),
  )
