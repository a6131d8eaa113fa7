"""Which family of models a published checkpoint belongs to."""

import dataclasses
import json
from pathlib import Path
from types import ModuleType

from jaxrl_mm.errors import InputError
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.huggingface import internvl, qwen2_5_vl, safetensors, text

# `model_type` of config.json -> the module that reads it.
FAMILIES: dict[str, ModuleType] = {
  "qwen2_5_vl": qwen2_5_vl,
  "internvl": internvl,
  "internvl_chat": internvl,
  "skywork_chat": internvl,
  "intern_vit_6b": internvl,  # its tower by itself
  "qwen2": text,
  "qwen3": text,
  "llama": text,
}


def family(folder: Path) -> ModuleType:
  """The module that knows the checkpoint's config and tensors.

  Raises:
    InputError: config.json cannot be read or names an unknown model.
  """
  kind = str(_read_json(folder).get("model_type"))
  if kind not in FAMILIES:
    raise InputError(
      f"{folder / 'config.json'} has model_type '{kind}'; name a checkpoint of "
      + ", ".join(FAMILIES)
    )
  return FAMILIES[kind]


def read_config(folder: Path) -> ModelConfig:
  """The sizes of a checkpoint, from its config.json.

  A `value_head.safetensors` beside a Qwen2.5-VL makes it a reward model.

  Raises:
    InputError: config.json cannot be read or is of no family known here.
  """
  module = family(folder)
  config = module.read_config(_read_json(folder))
  if module is qwen2_5_vl and (folder / safetensors.VALUE_HEAD).is_file():
    config = dataclasses.replace(config, value_head=True)
  return config


def read_context(folder: Path) -> int | None:
  """Tokens a checkpoint reads in all, from its config.json, if that says."""
  fields = _read_json(folder)
  parts = (fields, fields.get("text_config"), fields.get("llm_config"))
  given = [(part or {}).get("max_position_embeddings") for part in parts]
  return next(filter(None, given), None)


def _read_json(folder: Path) -> dict:
  """The object in config.json."""
  path = folder / "config.json"
  try:
    fields = json.loads(path.read_bytes())
  except OSError as error:
    raise InputError(
      f"{path} cannot be read ({error.strerror}); name the folder of a "
      "checkpoint with its config.json"
    ) from error
  except (ValueError, RecursionError):
    fields = None
  if not isinstance(fields, dict):
    raise InputError(f"{path} holds no JSON object; download it again")
  return fields
