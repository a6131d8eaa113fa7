"""Adapters in the files that `peft` and servers read."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrl_mm import pytree
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import lora
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.huggingface import families, safetensors
from jaxrl_mm.models.huggingface.save import save_params
from jaxrl_mm.models.huggingface.tables import Entry
from jaxrl_mm.models.lora import LoraConfig

# What peft puts before the name of a module of the adapted model.
PREFIX = "base_model.model."


def module_table(folder: Path, config: ModelConfig) -> Sequence[Entry]:
  """The table of a model with the names of its modules in memory.

  Since its version 4.52 transformers keeps all but the head inside `model`,
  whatever the names in the files; a model with code of its own does not.
  """
  names = safetensors.scan(folder).tensors.keys()
  if not any(name.startswith("vision_model.") for name in names):
    names = {"model.visual."}
  return families.family(folder).table(config, names)


def entries(table: Sequence[Entry], params: dict) -> list[Entry]:
  """Entries of the adapters in `params`, from those of their kernels.

  Raises:
    InputError: an adapted kernel is several tensors in that layout, whose
      adapters would have to share A.
  """
  names = [name for name, _ in pytree.named_leaves(params)]
  adapted = {
    n.removesuffix("lora_a") + "kernel" for n in names if n.endswith("lora_a")
  }
  found = []
  for entry in table:
    if entry.ours in adapted:
      found += _of_kernel(entry)
  return found


def _of_kernel(entry: Entry) -> list[Entry]:
  ours, _, theirs = entry.axes.partition("=")
  layers, inputs, outputs = (
    " ".join(part) for part in lora.split_axes(entry.ours, tuple(ours.split()))
  )
  if re.findall(r"\{(\w+)", entry.theirs) != layers.split():
    raise InputError(
      f"the adapter of {entry.ours} cannot be written: this layout keeps that "
      f"kernel as several tensors ({entry.theirs}); merge the adapters instead"
    )
  module = PREFIX + entry.theirs.removesuffix(".weight")
  path = entry.ours.removesuffix("kernel")
  return [
    Entry(
      path + "lora_a",
      module + ".lora_A.weight",
      f"{layers} {inputs} r = r ({inputs})".strip(),
    ),
    Entry(
      path + "lora_b",
      module + ".lora_B.weight",
      f"{layers} r {outputs} = ({outputs}) r".strip(),
    ),
  ]


def describe(
  config: LoraConfig, found: Sequence[Entry], base: str
) -> dict[str, Any]:
  """`adapter_config.json`.

  Args:
    config: of the adapters.
    found: their entries.
    base: folder or hub name of the model they belong to.
  """
  modules = {
    re.escape(e.theirs.removeprefix(PREFIX).rsplit(".lora_", 1)[0]).replace(
      r"\{l\}", r"\d+"
    )
    for e in found
  }
  return {
    "peft_type": "LORA",
    "task_type": None,
    "base_model_name_or_path": base,
    "r": config.rank,
    "lora_alpha": config.alpha,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "target_modules": "|".join(sorted(modules)),
  }


def save(
  params: dict, table: Sequence[Entry], config: LoraConfig, base: str, to: Path
) -> None:
  """Writes `adapter_model.safetensors` and `adapter_config.json`.

  Args:
    params: weights with adapters.
    table: of `module_table`.
    config: of the adapters.
    base: folder or hub name of the model they belong to.
    to: folder; must not exist, or be empty.
  """
  found = entries(table, params)
  adapters, _ = pytree.split(params, ".*/lora_[ab]")
  save_params(adapters, found, to, like=None, dtype="float32")
  (to / safetensors.SINGLE).rename(to / "adapter_model.safetensors")
  text = json.dumps(describe(config, found, base), indent=2) + "\n"
  (to / "adapter_config.json").write_text(text)
