"""Tiles and prompts against transformers' InternVL processor; see
tests/golden/make_internvl_processor.py."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from jaxrl_mm.data import images, loader, templates
from jaxrl_mm.data.images import Tiles
from jaxrl_mm.data.sources import Example

GOLDEN = Path(__file__).parents[1] / "golden"
ABOUT = json.loads((GOLDEN / "internvl_processor.json").read_text())
LAYOUT = Tiles(max_tiles=12, image_size=16, tokens=4, max_pictures=3)
SIZES = sorted({tuple(s) for _, _, sizes, _ in ABOUT["prompts"] for s in sizes})


def _picture(width, height):
  """As in make_internvl_processor.py."""
  noise = np.random.RandomState(width * 1000 + height)
  coarse = noise.uniform(0, 200, (height // 4 + 1, width // 4 + 1, 3))
  coarse = np.kron(coarse, np.ones((4, 4, 1)))[:height, :width]
  return (coarse + noise.uniform(0, 55, coarse.shape)).astype(np.uint8)


def _tokenizer(template):
  inner = tokenizers.Tokenizer.from_str(json.dumps(ABOUT["tokenizer"]))
  return PreTrainedTokenizerFast(
    tokenizer_object=inner,
    pad_token="<|endoftext|>",
    eos_token="<|im_end|>",
    chat_template=ABOUT["templates"][template],
  )


@pytest.fixture(scope="module")
def arrays():
  return np.load(GOLDEN / "internvl_processor.npz")


@pytest.mark.parametrize("width, height", SIZES, ids=lambda side: str(side))
def test_tiles_are_those_of_pillow(arrays, width, height):
  got = images.tile(_picture(width, height), image_size=16, max_tiles=12)
  np.testing.assert_array_equal(got, arrays[f"pillow/{width}x{height}"])


@pytest.mark.parametrize("width, height", SIZES, ids=lambda side: str(side))
def test_tiles_are_close_to_those_of_torchvision(arrays, width, height):
  """It rounds bicubic weights otherwise: one byte apart at most."""
  got = images.tile(_picture(width, height), image_size=16, max_tiles=12)
  theirs = arrays[f"torchvision/{width}x{height}"]
  gap = np.abs(got.astype(int) - theirs)
  assert gap.max() <= 1 and gap.mean() < 0.05


def test_numbers_of_tiles_at_full_size(arrays):
  sides = ABOUT["sides"]
  for most, counts in zip((1, 2, 6, 12), arrays["counts"]):
    for (i, width), (j, height) in itertools.product(
      enumerate(sides), enumerate(sides)
    ):
      columns, rows = images.grid(width, height, image_size=448, max_tiles=most)
      tiles = columns * rows
      assert tiles + (tiles > 1) == counts[i, j], (width, height, most)


@pytest.mark.parametrize(
  "template, question, sizes, expected", ABOUT["prompts"]
)
def test_prompt_ids(template, question, sizes, expected):
  pictures = [_picture(*size) for size in sizes]
  counts = images.encode(pictures, LAYOUT, name="a").tokens
  ids = templates.prompt_ids(_tokenizer(template), question, counts, name="a")
  assert ids == expected


def test_several_pictures_make_one_row():
  template, question, sizes, expected = ABOUT["prompts"][1]
  pictures = [_picture(*size) for size in sizes]
  row = loader.encode_prompt(
    Example("a", tuple(pictures), question, ""),
    0,
    _tokenizer(template),
    loader.Layout(100, 10, LAYOUT),
  )
  assert row.tokens[row.mask].tolist() == expected
  tiles = [images.tile(p, image_size=16, max_tiles=12) for p in pictures]
  used = sum(map(len, tiles))
  np.testing.assert_array_equal(row.images[:used], np.concatenate(tiles))
  assert len(row.images) == 3 * 13 and not row.images[used:].any()
