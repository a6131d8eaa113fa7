"""Names of adapters. What peft makes of them: tests/parity/peft_parity.py."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrl_mm.errors import InputError
from jaxrl_mm.models import lora, vlm
from jaxrl_mm.models.config import QwenVisionConfig
from jaxrl_mm.models.huggingface import peft
from jaxrl_mm.models.lora import LoraConfig

pytestmark = pytest.mark.usefixtures("quick_compile")


def _adapted(model, targets):
  """Shapes of its weights with adapters."""
  attach = lambda key: lora.attach(
    LoraConfig(rank=2, targets=targets), vlm.init(model, key), key
  )
  return jax.eval_shape(attach, jax.random.key(0))


def _folder(tmp_path, model_type, name):
  """As much of a checkpoint as tells its family and layout."""
  fields = json.dumps({"model_type": model_type})
  (tmp_path / "config.json").write_text(fields)
  save_file({name: np.zeros(1)}, tmp_path / "model.safetensors")
  return tmp_path


@pytest.mark.parametrize(
  "name", ["visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"]
)
def test_modules_are_named_as_in_memory_whatever_the_files_say(
  tmp_path, tiny, name
):
  vision = QwenVisionConfig(2, 32, 2, 32, full_layers=(1,), patch_size=4)
  model = dataclasses.replace(tiny, vision=vision)
  folder = _folder(tmp_path, "qwen2_5_vl", name)
  table = peft.module_table(folder, model)
  found = peft.entries(table, _adapted(model, ".*attention/(q|out)/kernel"))
  assert {entry.theirs for entry in found} == {
    f"base_model.model.model.{module}.lora_{ab}.weight"
    for ab in "AB"
    for module in (
      "visual.blocks.{l}.attn.proj",
      "language_model.layers.{l}.self_attn.q_proj",
      "language_model.layers.{l}.self_attn.o_proj",
    )
  }


def test_a_model_with_code_of_its_own_keeps_its_names(tmp_path, tiny):
  name = "vision_model.embeddings.class_embedding"
  folder = _folder(tmp_path, "internvl_chat", name)
  table = peft.module_table(folder, tiny)
  adapted = _adapted(tiny, "(vision|decoder)/layers/.*out/kernel")
  assert {e.theirs for e in peft.entries(table, adapted)} == {
    f"base_model.model.{module}.lora_{ab}.weight"
    for ab in "AB"
    for module in (
      "vision_model.encoder.layers.{l}.attn.proj",
      "language_model.model.layers.{l}.self_attn.o_proj",
    )
  }


def test_a_kernel_of_several_tensors_is_refused(tmp_path, tiny):
  """transformers keeps q, k and v of the tower apart."""
  folder = _folder(tmp_path, "internvl", "vision_tower.embeddings.cls_token")
  table = peft.module_table(folder, tiny)
  adapted = _adapted(tiny, "vision/layers/attention/qkv/kernel")
  with pytest.raises(InputError, match="keeps that kernel as several tensors"):
    peft.entries(table, adapted)


def test_the_files_hold_what_peft_multiplies(tmp_path, tiny, params):
  """W + scale B A, with their axes: A is [rank, in] and B [out, rank]."""
  model = dataclasses.replace(tiny, vision=None)
  folder = _folder(tmp_path, "qwen2", "model.norm.weight")
  adapters = LoraConfig(rank=2, alpha=6.0, targets=".*/(down|q)/kernel")
  params = {name: params[name] for name in ("embedder", "decoder")}
  params = lora.attach(adapters, params, jax.random.key(0))
  table = peft.module_table(folder, model)
  peft.save(params, table, adapters, "base", tmp_path / "out")
  files = load_file(tmp_path / "out" / "adapter_model.safetensors")
  about = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
  assert (about["r"], about["lora_alpha"]) == (2, 6.0)
  name = "base_model.model.model.layers.1.{}.lora_{}.weight"
  a = params["decoder"]["layers"]["down"]["lora_a"][1]
  np.testing.assert_array_equal(files[name.format("mlp.down_proj", "A")], a.T)
  assert files[name.format("self_attn.q_proj", "B")].shape == (64, 2)
