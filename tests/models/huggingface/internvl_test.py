"""Against transformers' InternVL; see tests/golden/make_internvl.py."""

import copy
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxrl_mm import pytree, sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import config as sizes
from jaxrl_mm.models import vlm
from jaxrl_mm.models.huggingface import internvl, load
from jaxrl_mm.structs import Prompts

pytestmark = pytest.mark.usefixtures("quick_compile")

IMAGE = 61
CASES = ("300m", "6b")


# Layouts of one and the same checkpoint, from the newest to the oldest.
def _with_model(tensors):
  return dict(tensors)


def _without_model(tensors):
  """transformers as it saves to disk."""
  rename = lambda name: re.sub(
    r"^lm_head",
    "language_model.lm_head",
    name.replace(
      "model.language_model.", "model.language_model.model."
    ).removeprefix("model."),
  )
  return {rename(name): x for name, x in tensors.items()}


_OWN_NAMES = (
  ("vision_tower.encoder.layer.", "vision_model.encoder.layers."),
  ("vision_tower.", "vision_model."),
  ("cls_token", "class_embedding"),
  ("position_embeddings", "position_embedding"),
  ("patch_embeddings.projection", "patch_embedding"),
  ("layernorm_before", "norm1"),
  ("layernorm_after", "norm2"),
  ("lambda_", "ls"),
  ("attention.projection_layer", "attn.proj"),
  (".attention.", ".attn."),
  ("multi_modal_projector.layer_norm", "mlp1.0"),
  ("multi_modal_projector.linear_1", "mlp1.1"),
  ("multi_modal_projector.linear_2", "mlp1.3"),
)


def _own(tensors):
  """The layout of InternVL's own code: other names, q, k and v in one."""
  out = {}
  for name, x in _without_model(tensors).items():
    for theirs, own in _OWN_NAMES:
      name = name.replace(theirs, own)
    out[name] = x
  for name in [n for n in out if ".attn.q_proj." in n]:
    parts = [out.pop(name.replace("q_proj", f"{c}_proj")) for c in "qkv"]
    out[name.replace("q_proj", "qkv")] = np.concatenate(parts)
  return out


LAYOUTS = {
  "with model": _with_model,
  "on disk": _without_model,
  "own code": _own,
}


@pytest.fixture(scope="module")
def stored(golden):
  return golden("internvl")


@pytest.fixture(scope="module")
def tensors(stored, weights):
  return {case: weights(stored[1][case]["shapes"]) for case in CASES}


@pytest.fixture(scope="module")
def models(stored, tensors, from_tensors):
  """(config, entries, params) of both towers, from the newest layout."""

  def read(case):
    config = internvl.read_config(stored[1][case]["config"])
    config = dataclasses.replace(config, dtype="float32")
    entries = internvl.table(config, tensors[case].keys())
    return config, entries, from_tensors(config, entries, tensors[case])

  return {case: read(case) for case in CASES}


@pytest.fixture(scope="module")
def prompts(stored):
  arrays, _ = stored
  return Prompts(
    tokens=jnp.asarray(arrays["tokens"], jnp.int32),
    mask=jnp.asarray(arrays["mask"]),
    images=jnp.asarray(arrays["pixels"]),
    group=jnp.arange(3),
  )


@pytest.fixture(scope="module")
def scorers(models, score):
  return {case: score(models[case][0], IMAGE) for case in CASES}


def test_a_tower_that_is_published_by_itself(models, tensors, tmp_path):
  prefix = "vision_model."
  alone = {
    name.removeprefix(prefix): np.ascontiguousarray(x)
    for name, x in _own(tensors["6b"]).items()
    if name.startswith(prefix)
  }
  safetensors.numpy.save_file(alone, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text('{"model_type": "intern_vit_6b"}')
  config, _, params = models["6b"]
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  got = load.load_params(tmp_path, config, mesh, parts=("vision",))
  assert got.keys() == {"vision"}
  jax.tree.map(np.testing.assert_array_equal, got["vision"], params["vision"])


# ------------------------------------------------------------------ numbers
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_logits(
  models, scorers, stored, prompts, right_padded, case, side
):
  """Rows with two pictures, with one and with none."""
  rows = prompts if side == "left" else right_padded(prompts)
  (_, (hidden, logits)), _ = scorers[case](models[case][2], rows)
  real = np.asarray(rows.mask)
  close = lambda mine, name: np.testing.assert_allclose(
    np.asarray(mine)[real], stored[0][f"{case}/{name}"][real], atol=2e-5, rtol=0
  )
  close(hidden, f"{side}/hidden")
  if side == "right":
    close(logits, "logits")


@pytest.mark.parametrize("case", CASES)
def test_gradients(
  models, scorers, stored, prompts, right_padded, compare_gradients, case
):
  config, entries, params = models[case]
  arrays, about = stored
  _, gradient = scorers[case](params, right_padded(prompts))
  shapes = about[case]["shapes"]
  theirs = {n: arrays.get(f"{case}/gradient/{n}") for n in shapes}
  compared = compare_gradients(config, entries, shapes, gradient, theirs)
  assert compared == 7


def test_64_greedy_tokens(models, stored, prompts, greedy):
  config, _, params = models["6b"]
  got = greedy(config, params, prompts, IMAGE)
  np.testing.assert_array_equal(got, stored[0]["6b/greedy"])


# ------------------------------------------------------------------ layouts
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_all_layouts_give_the_same_weights(
  models, tensors, from_tensors, case, layout
):
  config, _, params = models[case]
  named = LAYOUTS[layout](tensors[case])
  entries = internvl.table(config, named.keys())
  got = from_tensors(config, entries, named)
  jax.tree.map(np.testing.assert_array_equal, got, params)


def test_every_weight_of_the_large_models_has_one_entry():
  for config in (sizes.r1v2_38b(), sizes.internvl3_1b()):
    shapes = jax.eval_shape(
      lambda key, c=config: vlm.init(c, key), jax.random.key(0)
    )
    leaves = [name for name, _ in pytree.named_leaves(shapes)]
    for names in (["vision_model.x"], ["model.vision_tower.x"], []):
      entries = internvl.table(config, names)
      assert sorted(e.ours for e in entries) == sorted(leaves)


# ------------------------------------------------------------------- config
VISION_6B = {
  "model_type": "intern_vit_6b",
  "hidden_act": "gelu",
  "hidden_size": 3200,
  "image_size": 448,
  "initializer_factor": 0.1,
  "intermediate_size": 12800,
  "layer_norm_eps": 1e-6,
  "num_attention_heads": 25,
  "num_channels": 3,
  "num_hidden_layers": 45,
  "patch_size": 14,
  "qk_normalization": True,
  "qkv_bias": False,
}
QWQ = {
  "model_type": "qwen2",
  "hidden_act": "silu",
  "hidden_size": 5120,
  "intermediate_size": 27648,
  "max_window_layers": 64,
  "num_attention_heads": 40,
  "num_hidden_layers": 64,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-5,
  "rope_scaling": None,
  "rope_theta": 1000000.0,
  "sliding_window": 32768,
  "tie_word_embeddings": False,
  "use_sliding_window": False,
  "vocab_size": 152064,
}
SKYWORK = {
  "model_type": "skywork_chat",
  "downsample_ratio": 0.5,
  "force_image_size": 448,
  "llm_config": QWQ,
  "pad2square": False,
  "ps_version": "v2",
  "select_layer": -1,
  "use_backbone_lora": 0,
  "use_llm_lora": 0,
  "use_thumbnail": True,
  "vision_config": VISION_6B,
}
VISION_300M = VISION_6B | {
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "norm_type": "layer_norm",
  "num_attention_heads": 16,
  "num_hidden_layers": 24,
  "qk_normalization": False,
  "qkv_bias": True,
}
QWEN_HALF_B = QWQ | {
  "hidden_size": 896,
  "intermediate_size": 4864,
  "num_attention_heads": 14,
  "num_hidden_layers": 24,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-6,
  # As published; no change up to max_position_embeddings.
  "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
  "vocab_size": 151674,
}


def test_the_published_sizes_are_read():
  assert internvl.read_config(SKYWORK) == sizes.r1v2_38b()
  small = {"llm_config": QWEN_HALF_B, "vision_config": VISION_300M}
  own = SKYWORK | small | {"model_type": "internvl_chat"}
  assert internvl.read_config(own) == sizes.internvl3_1b()


def test_the_newest_layout_names_the_same_sizes():
  vision = {
    "model_type": "internvl_vision",
    "attention_bias": True,
    "hidden_size": 1024,
    "image_size": [448, 448],
    "intermediate_size": 4096,
    "layer_scale_init_value": 0.1,
    "norm_type": "layer_norm",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": [14, 14],
    "use_qk_norm": False,
  }
  json = {
    "model_type": "internvl",
    "text_config": QWEN_HALF_B | {"tie_word_embeddings": True},
    "tie_word_embeddings": False,
    "vision_config": vision,
  }
  assert internvl.read_config(json) == sizes.internvl3_1b()


@pytest.mark.parametrize(
  "path, value, message",
  [
    ("ps_version", "v1", "has ps_version = 'v1' and this model knows only"),
    ("ps_version", None, "ps_version"),
    ("select_layer", -2, "select_layer = -2"),
    ("force_image_size", 336, "force_image_size = 336"),
    ("use_llm_lora", 16, "use_llm_lora = 16"),
    ("downsample_ratio", 0.3, "downsample_ratio = 0.3"),
    ("vision_config", None, "has no 'vision_config'"),
    ("vision_config/hidden_act", "gelu_pytorch_tanh", "hidden_act = 'gelu_p"),
    ("vision_config/norm_type", "batch", "vision_config has norm_type"),
    ("vision_config/patch_size", [14, 28], r"sides of \[14, 28\]"),
    ("llm_config/model_type", "internlm2", "llm_config has model_type = 'int"),
    ("llm_config/rope_scaling", {"type": "yarn"}, "rotary positions by 'yarn'"),
  ],
)
def test_what_cannot_be_honoured_is_named(path, value, message):
  json = copy.deepcopy(SKYWORK)
  *parts, last = path.split("/")
  inner = json
  for part in parts:
    inner = inner[part]
  inner[last] = value
  with pytest.raises(InputError, match=message) as error:
    internvl.read_config(json)
  assert "config.json" in str(error.value)
