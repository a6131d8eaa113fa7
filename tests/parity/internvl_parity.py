"""InternVL and Skywork R1V2 beside transformers, in all three layouts."""

import json
import re

import jax.numpy as jnp
import make_internvl as reference
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import InternVLConfig, InternVLForConditionalGeneration

from jaxrl_mm.structs import Prompts

pytestmark = pytest.mark.usefixtures("quick_compile")

TOWERS = {
  "300M": dict(norm_type="layer_norm", attention_bias=True, use_qk_norm=False),
  "6B": dict(norm_type="rms_norm", attention_bias=False, use_qk_norm=True),
}
# Family, tower, decoder, tied embeddings, model_type of their own code.
CASES = (
  ("InternVL3, 300M tower, Qwen2", "300M", "QWEN2", False, "internvl_chat"),
  ("InternVL3.5, 300M tower, Qwen3", "300M", "QWEN3", True, "internvl_chat"),
  ("Skywork R1V2, 6B tower, Qwen2", "6B", "QWEN2", False, "skywork_chat"),
)
# Names in transformers' layout -> those of the remote code.
OWN_NAMES = {
  r"vision_tower\.embeddings\.cls_token": (
    "vision_model.embeddings.class_embedding"
  ),
  r"vision_tower\.embeddings\.position_embeddings": (
    "vision_model.embeddings.position_embedding"
  ),
  r"vision_tower\.embeddings\.patch_embeddings\.projection": (
    "vision_model.embeddings.patch_embedding"
  ),
  r"vision_tower\.encoder\.layer\.": "vision_model.encoder.layers.",
  r"attention\.projection_layer": "attn.proj",
  r"attention\.(?=[qk]_norm)": "attn.",
  r"layernorm_before": "norm1",
  r"layernorm_after": "norm2",
  r"lambda_": "ls",
  r"multi_modal_projector\.layer_norm": "mlp1.0",
  r"multi_modal_projector\.linear_1": "mlp1.1",
  r"multi_modal_projector\.linear_2": "mlp1.3",
}


def write_own_layout(source, folder, model_type):
  """The checkpoint `source` under the names of the models' remote code."""
  tensors, own = load_file(source / "model.safetensors"), {}
  for name, x in tensors.items():
    if "vision_tower" in name and "q_proj" in name:
      parts = [tensors[name.replace("q_proj", f"{c}_proj")] for c in "qkv"]
      name, x = (
        name.replace("attention.q_proj", "attn.qkv"),
        np.concatenate(parts),
      )
    elif "vision_tower" in name and re.search("[kv]_proj", name):
      continue
    for pattern, new in OWN_NAMES.items():
      name = re.sub(pattern, new, name)
    own[name] = x
  save_file(own, folder / "model.safetensors")
  config = own_config(json.loads((source / "config.json").read_text()))
  text = json.dumps(config | {"model_type": model_type})
  (folder / "config.json").write_text(text)


def own_config(config):
  """The remote code's config.json, with the fields of the published ones."""
  vision, llm = config["vision_config"], config["text_config"]
  same = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "norm_type"),
    *("num_attention_heads", "hidden_act", "layer_norm_eps"),
  )
  return {
    "downsample_ratio": config["downsample_ratio"],
    "dynamic_image_size": True,
    "force_image_size": 8,
    "llm_config": llm | {"tie_word_embeddings": config["tie_word_embeddings"]},
    "max_dynamic_patch": 12,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internvl2_5",
    "use_thumbnail": True,
    "vision_config": {name: vision[name] for name in same}
    | {
      "image_size": 8,
      "initializer_factor": vision["layer_scale_init_value"],
      "model_type": "intern_vit_6b",
      "patch_size": 2,
      "qk_normalization": vision["use_qk_norm"],
      "qkv_bias": vision["attention_bias"],
    },
  }


@pytest.mark.parametrize(
  "family, tower, decoder, tied, model_type", CASES, ids=lambda x: str(x)
)
def test_hidden_states_logits_gradients_and_64_tokens(
  family,
  tower,
  decoder,
  tied,
  model_type,
  tmp_path,
  read_folder,
  read_gradients,
  equal_trees,
  compare,
):
  tokens, mask, pixels = reference.rows()
  tiles = (pixels.reshape(3, reference.TILES, -1).sum(-1) > 0).sum(1)
  model = InternVLForConditionalGeneration(
    InternVLConfig(
      image_token_id=reference.IMAGE,
      vision_config=reference.TOWER | TOWERS[tower],
      text_config=getattr(reference, decoder),
      tie_word_embeddings=tied,
    )
  )
  arrays, _ = reference.results(
    model, tokens, mask, (), pixel_values=reference.normalised(pixels, tiles)
  )
  published, new, own = (tmp_path / name for name in ("published", "new", "o"))
  own.mkdir()
  model.save_pretrained(published)
  model.save_pretrained(new, save_original_format=False)
  write_own_layout(published, own, model_type)
  config, params = read_folder(published)
  for folder in (new, own):
    other, same = read_folder(folder)
    assert other == config
    equal_trees(same, params)
  prompts = Prompts(
    jnp.asarray(tokens, jnp.int32),
    jnp.asarray(mask, bool),
    jnp.asarray(pixels),
    jnp.arange(3),
  )
  slopes = read_gradients(model, config)
  compare(family, config, params, slopes, arrays, prompts, reference.IMAGE)
