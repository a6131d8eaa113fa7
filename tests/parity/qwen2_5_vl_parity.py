"""Qwen2.5-VL beside transformers' torch code, on weights drawn at random.

Needs torch; `python -m pytest -n 0 tests/parity/qwen2_5_vl_parity.py`. The
default tests hold the same model to numbers this code once gave.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxrl_mm import pytree
from jaxrl_mm.data import patches
from jaxrl_mm.data.patches import Patching
from jaxrl_mm.models import vlm
from jaxrl_mm.models.huggingface import qwen2_5_vl, tables
from jaxrl_mm.structs import Prompts

# A torchvision built for another torch cannot load its compiled operators;
# it wants to know these two, and the model needs neither.
if not hasattr(torch.ops.torchvision, "nms"):
  OPERATORS = torch.library.Library("torchvision", "DEF")
  for operator in ("nms", "qnms"):
    OPERATORS.define(f"{operator}(Tensor a, Tensor b, float c) -> Tensor")

from transformers import (  # noqa: E402
  Qwen2_5_VLConfig,
  Qwen2_5_VLForConditionalGeneration,
)

IMAGE, VIDEO = 90, 91
PATCHING = Patching(
  windows=12,
  max_pictures=3,
  min_pixels=64,
  max_pixels=64 * 64,
  frames=2,
  patch_size=4,
  window=4,
)


def _theirs(tied):
  config = Qwen2_5_VLConfig(
    vision_config=dict(
      depth=3,
      hidden_size=32,
      intermediate_size=36,
      num_heads=2,
      patch_size=4,
      window_size=16,
      tokens_per_second=2,
      out_hidden_size=64,
      fullatt_block_indexes=[1],
    ),
    text_config=dict(
      vocab_size=96,
      hidden_size=64,
      intermediate_size=96,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      rope_parameters={
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 3, 3],
      },
      bos_token_id=0,
      eos_token_id=1,
    ),
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    tie_word_embeddings=tied,
  )
  torch.manual_seed(0)
  model = Qwen2_5_VLForConditionalGeneration(config).float().eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      scale = 0.5 if "embed" in name or "lm_head" in name else 0.2
      weight.copy_(scale * torch.randn(weight.shape) + ("norm" in name))
  return model


def _ours(theirs):
  config = qwen2_5_vl.read_config(theirs.config.to_dict())
  config = dataclasses.replace(config, dtype="float32")
  tensors = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
  shapes = jax.eval_shape(lambda key: vlm.init(config, key), jax.random.key(0))
  layouts = tables.layouts(qwen2_5_vl.table(config, tensors), shapes)

  def read(name, _):
    how = layouts[name]
    parts = [tables.to_ours(tensors[n], how) for n in how.names.values()]
    return jnp.stack(parts) if how.stacked else jnp.asarray(parts[0])

  return config, pytree.map_with_name(read, shapes)


def _pictures(seed):
  """Two still pictures and a video, in whole image tokens of 8 pixels.

  The video is wide for its length: after a long one transformers since 5.3
  lets text start too early, inside the video's time.
  """
  rng = np.random.default_rng(seed)
  sides = 8 * rng.integers(1, 5, size=(3, 2))
  sides[2, 1] = 40
  shapes = [(*sides[0], 3), (*sides[1], 3), (3, *sides[2], 3)]
  return [rng.integers(256, size=s).astype(np.uint8) for s in shapes]


def _in_their_order(picture):
  """Their flat patches of one picture, from its definition."""
  frames = picture if picture.ndim == 4 else picture[None]
  if len(frames) % 2:
    frames = np.concatenate([frames, frames[-1:]])
  t, (h, w) = len(frames) // 2, np.array(frames.shape[1:3]) // 8
  x = (frames / 255 - _MEAN) / _STD
  x = x.reshape(t, 2, h, 2, 4, w, 2, 4, 3)
  x = x.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w * 4, -1)
  return torch.tensor(x, dtype=torch.float32), [t, 2 * h, 2 * w]


_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
_STD = np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_logits_of_pictures_and_a_video(tied, seed):
  theirs = _theirs(tied)
  config, params = _ours(theirs)
  pictures = _pictures(seed)
  layout = dataclasses.replace(PATCHING, windows=40)
  row, grids = patches.encode(pictures, layout, name="a")
  ids = [2, 3]
  for grid, token in zip(grids, (IMAGE, IMAGE, VIDEO)):
    ids += [4, *[token] * grid.tokens, 5]
  ids = np.array([*ids, *range(10, 20)])
  pixels, thw = zip(*map(_in_their_order, pictures))
  seconds = layout.seconds_per_frame * layout.tower_frames
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.tensor(ids[None]),
      attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
      mm_token_type_ids=torch.tensor([(ids == IMAGE) * 1 + (ids == VIDEO) * 2]),
      pixel_values=torch.cat(pixels[:2]),
      image_grid_thw=torch.tensor(thw[:2]),
      pixel_values_videos=pixels[2],
      video_grid_thw=torch.tensor(thw[2:]),
      second_per_grid_ts=torch.tensor([seconds]),
    ).logits[0]
  ids = np.where(ids == VIDEO, IMAGE, ids).astype(np.int32)
  places = patches.positions(ids == IMAGE, grids, layout)
  prompts = Prompts(
    tokens=ids,
    mask=np.ones(len(ids), bool),
    images=row,
    group=np.int32(0),
    positions=places,
  )
  prompts = jax.tree.map(lambda x: jnp.asarray(x)[None], prompts)
  none = jnp.zeros((1, 0), jnp.int32)
  run = jax.jit(
    lambda params, prompts: vlm.hidden_states(
      config, params, prompts, none, none > 0, image_token=IMAGE
    )
  )
  logits = run(params, prompts)[0] @ vlm.head(params).T
  gap = np.abs(np.asarray(logits) - expected.numpy()).max()
  print(f"largest difference of logits {gap:.1e}")
  assert gap < 1e-4
