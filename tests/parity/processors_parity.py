"""Pictures and prompts beside the processors of transformers."""

import itertools

import jax.numpy as jnp
import make_internvl_processor as internvl
import make_qwen2_5_vl as qwen
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
  GotOcr2ImageProcessor,
  GotOcr2ImageProcessorPil,
  PreTrainedTokenizerFast,
  Qwen2VLImageProcessor,
  Qwen2VLImageProcessorPil,
  Qwen2VLVideoProcessor,
)

from jaxrl_mm.data import images, patches, templates
from jaxrl_mm.data.images import Tiles
from jaxrl_mm.data.patches import Patching
from jaxrl_mm.models import internvit, qwen_vit

# Width and height: tiny, thin, square, odd, and larger than all tiles.
SIZES = (
  (1, 1),
  (13, 29),
  (28, 700),
  (97, 61),
  (224, 224),
  (448, 449),
  (513, 301),
  (640, 480),
  (1000, 40),
  (1501, 999),
)
FLOAT = jnp.dtype("float32")
PATCHING = Patching(windows=400, frames=2, max_pixels=28 * 28 * 400)
LIMITS = {
  "shortest_edge": PATCHING.min_pixels,
  "longest_edge": PATCHING.max_pixels,
}


def _check(mine, of_pillow, of_torchvision, step):
  """Pillow's to rounding; torchvision rounds and clips on another way.

  Bytes differ by one, and by more where a sharp edge overshoots.
  """
  assert mine.shape == of_pillow.shape == of_torchvision.shape
  np.testing.assert_allclose(mine, of_pillow, atol=1e-5)
  gap = np.abs(mine - of_torchvision) / step
  assert gap.mean() < 0.3 and (gap > 1.001).mean() < 2e-3


@pytest.mark.parametrize("width, height", SIZES, ids=lambda side: str(side))
def test_tiles_of_internvl(width, height):
  settings = internvl.SETTINGS | {"size": {"height": 112, "width": 112}}
  picture = internvl.picture(width, height)
  tiles = images.tile(picture, image_size=112, max_tiles=internvl.TILES)
  mine = np.asarray(internvit.normalize(jnp.asarray(tiles), FLOAT))
  theirs = [
    kind(**settings)([Image.fromarray(picture)], return_tensors="np")
    for kind in (GotOcr2ImageProcessorPil, GotOcr2ImageProcessor)
  ]
  pixels = [np.asarray(x["pixel_values"]).transpose(0, 2, 3, 1) for x in theirs]
  _check(mine, *pixels, 1 / 255 / min(internvl.STD))


def test_numbers_of_tiles_at_full_size():
  theirs = GotOcr2ImageProcessor(size={"height": 448, "width": 448})
  sides = range(1, 3000, 157)
  for most, width, height in itertools.product((1, 6, 12), sides, sides):
    columns, rows = images.grid(width, height, image_size=448, max_tiles=most)
    tiles = columns * rows
    settings = {"crop_to_patches": True, "max_patches": most}
    assert tiles + (tiles > 1) == theirs.get_number_of_image_patches(
      height, width, settings
    )


@pytest.mark.parametrize("template", internvl.TEMPLATES)
def test_prompt_ids_of_internvl(template):
  inner = internvl.tokenizer()
  form = internvl.TEMPLATES[template]
  theirs = internvl.processor(inner, GotOcr2ImageProcessor(**internvl.SETTINGS))
  words = PreTrainedTokenizerFast(
    tokenizer_object=inner,
    pad_token="<|endoftext|>",
    eos_token="<|im_end|>",
    chat_template=form,
  )
  layout = Tiles(internvl.TILES, internvl.SIDE, internvl.TOKENS, 3)
  for question, sizes in internvl.PROMPTS:
    pictures = [internvl.picture(*size) for size in sizes]
    counts = images.encode(pictures, layout, name="a").tokens
    mine = templates.prompt_ids(words, question, counts, name="a")
    assert mine == internvl.prompt_ids(theirs, form, question, pictures)


def _in_their_order(frames):
  """Our patches of one picture as theirs: [patches, colours], and the grid."""
  row, grid = patches.encode_picture(frames, PATCHING)
  colours = np.asarray(qwen_vit.normalize(jnp.asarray(row.pixels), FLOAT))
  per_token = colours.reshape(-1, 4, *colours.shape[2:])[row.order]
  flat = per_token.reshape(-1, *colours.shape[2:])
  return flat.transpose(0, 4, 1, 2, 3).reshape(len(flat), -1), grid


@pytest.mark.parametrize("width, height", SIZES, ids=lambda side: str(side))
def test_patches_of_qwen(width, height):
  picture = internvl.picture(width, height)
  mine, grid = _in_their_order(np.stack([picture, picture]))
  pixels = []
  for kind in (Qwen2VLImageProcessorPil, Qwen2VLImageProcessor):
    theirs = kind(size=LIMITS)([Image.fromarray(picture)], return_tensors="np")
    assert (theirs["image_grid_thw"] // (1, 2, 2) == [grid]).all()
    pixels.append(np.asarray(theirs["pixel_values"]))
  _check(mine, *pixels, 1 / 255 / min(qwen_vit.STD))


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_patches_of_a_video_of_qwen(frames):
  """Frames already of a fitting size; an odd last one fills up its patch."""
  rng = np.random.default_rng(frames)
  video = rng.integers(256, size=(frames, 56, 84, 3)).astype(np.uint8)
  theirs = Qwen2VLVideoProcessor(
    size=LIMITS, do_sample_frames=False, cap_pixels_per_frame=False
  )(torch.from_numpy(video).permute(0, 3, 1, 2), return_tensors="np")
  mine, grid = _in_their_order(video)
  assert (theirs["video_grid_thw"] // (1, 2, 2) == [grid]).all()
  np.testing.assert_allclose(mine, theirs["pixel_values_videos"], atol=1e-5)


def test_prompt_ids_of_qwen():
  words = qwen.make_tokenizer()
  theirs = qwen.make_processor(words, 14, LIMITS)
  for sizes in ((), SIZES[3:4], SIZES[1:7]):
    pictures = [internvl.picture(*size) for size in sizes]
    counts = [patches.encode_picture(p, PATCHING)[1].tokens for p in pictures]
    mine = templates.prompt_ids(
      words, "What is <b>this</b>?", counts, name="a", markup=templates.QWEN
    )
    out = qwen.process(theirs, "What is <b>this</b>?", pictures, ())
    assert mine == out["input_ids"][0].tolist()
