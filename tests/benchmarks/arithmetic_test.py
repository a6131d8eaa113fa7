"""Numbers counted on paper for models of a few weights."""

import dataclasses

from benchmarks import arithmetic
from jaxrl_mm.data.images import Tiles
from jaxrl_mm.data.patches import Patching
from jaxrl_mm.models.config import (
  DecoderConfig,
  ModelConfig,
  QwenVisionConfig,
  VisionConfig,
)

DECODER = DecoderConfig(
  layers=2, width=4, heads=2, kv_heads=1, head_dim=3, mlp=5, vocab=7
)
TEXT = ModelConfig(vision=None, decoder=DECODER)
# Of one layer: q 4*6, k and v 4*3 each, out 6*4, mlp 3*4*5.
WEIGHTS = 2 * (24 + 12 + 12 + 24 + 60)


def test_one_pass_over_sequences():
  assert arithmetic.decoder_weights(DECODER) == WEIGHTS
  work = arithmetic.decoder_pass(TEXT, rows=3, length=5, reads=2)
  # 15 pairs of tokens; a pair is a product of 3 for 2 heads, twice, 2 layers.
  assert work.flops == 3 * (5 * 2 * WEIGHTS + 15 * 2 * 3 * 2 * 2 * 2)
  states = 2 * 3 * 5 * 2 * 4 * 2
  assert work.bytes == states + 2 * WEIGHTS * 2
  less = arithmetic.decoder_pass(TEXT, rows=3, length=5, reads=2, shared=4)
  assert work.flops - less.flops == 4 * 2 * WEIGHTS
  assert work.bytes - less.bytes == 2 * 4 * 2 * 4 * 2


def test_one_token_of_every_row():
  work = arithmetic.decode_token(
    TEXT, rows=6, prompts=2, prompt=10, own=4, reads=1
  )
  head = 7 * 4
  assert work.flops == 6 * (2 * WEIGHTS + 14 * 2 * 3 * 2 * 2 * 2 + 2 * head)
  entry = 2 * 3 * 2 * 2  # key and value, 2 layers, bfloat16
  assert work.bytes == (2 * 10 + 6 * 4) * entry + (WEIGHTS + head) * 2


def test_tiles():
  vision = VisionConfig(
    layers=1, width=4, heads=1, mlp=6, image_size=4, patch_size=2
  )
  model = dataclasses.replace(TEXT, vision=vision)
  tiles = Tiles(max_tiles=1, image_size=4, tokens=1)
  work = arithmetic.vision_pass(model, tiles, prompts=3, reads=1)
  # A tile is 4 patches and the class token, and becomes 1 token of width 16.
  layer = 5 * 2 * (4 * 16 + 2 * 4 * 6) + 4 * 4 * 5 * 5
  patches = 4 * 2 * (2 * 2 * 3) * 4
  projector = 2 * (16 * 4 + 4 * 4)
  assert work.flops == 3 * (layer + patches + projector)


def test_windows():
  vision = QwenVisionConfig(
    layers=2, width=4, heads=1, mlp=6, full_layers=(1,), patch_size=2, window=2
  )
  model = dataclasses.replace(TEXT, vision=vision)
  work = arithmetic.vision_pass(model, Patching(windows=3), prompts=1, reads=1)
  # 12 patches; of two layers one sees its window of 4, one all 12.
  weights = 2 * (4 * 16 + 3 * 4 * 6) + 2 * 2 * 2 * 3 * 4
  seen = 4 * 4 * 12 * (4 + 12)
  merger = 3 * 2 * (16 * 16 + 16 * 4)
  assert work.flops == 12 * 2 * weights + seen + merger


def test_nothing_to_see():
  assert arithmetic.vision_pass(TEXT, None, prompts=1, reads=1) == (0, 0)
