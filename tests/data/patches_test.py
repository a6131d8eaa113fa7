import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jaxrl_mm.data import images, loader, patches, templates, tokenizer
from jaxrl_mm.data.patches import Grid, Patching
from jaxrl_mm.data.sources import Example
from jaxrl_mm.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden"
# Patches of 2 x 2 pixels, tokens of 4 x 4, windows of 8 x 8.
SMALL = Patching(
  windows=6,
  max_pictures=3,
  min_pixels=16,
  max_pixels=400,
  patch_size=2,
  window=4,
)
QWEN_TOKENS = (*templates.QWEN[:3], templates.QWEN.video)
VIDEO = dataclasses.replace(SMALL, frames=2)


def _picture(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(256, size=(*shape, 3)).astype(np.uint8)


def test_sizes_are_those_of_the_reference():
  cases = json.loads((GOLDEN / "qwen2_5_vl.json").read_text())["smart_size"]
  assert len(cases) > 300
  limits = dict(factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
  for height, width, *expected in cases:
    got = patches.smart_size(height, width, **limits)
    assert got == tuple(expected), (height, width)


@pytest.mark.parametrize("number", range(4))
def test_resized_patches_are_those_of_the_reference(number):
  """Pillow and torchvision round a few bytes apart by one."""
  golden = np.load(GOLDEN / "qwen2_5_vl_resize.npz")
  layout = Patching(windows=9, min_pixels=56 * 56, max_pixels=28 * 28 * 7)
  row, grid = patches.encode_picture(golden[f"{number}/picture"], layout)
  rows, columns = golden[f"{number}/grid"][1:] // 2
  assert grid == (1, rows, columns)
  of_token = row.pixels[:, :, 0].reshape(-1, 4, 14, 14, 3)[row.order]
  mine = of_token.reshape(-1, 14, 14, 3).transpose(0, 3, 1, 2).astype(int)
  gap = np.abs(mine - golden[f"{number}/patches"])
  assert gap.max() <= 1
  assert gap.mean() < 0.01


def test_patches_of_a_token_lie_side_by_side_at_their_place():
  """20 x 12 pixels are 5 x 3 tokens and 3 x 2 windows, not all full."""
  picture = _picture(20, 12)
  row, grid = patches.encode_picture(picture, SMALL)
  assert grid == Grid(1, 5, 3)
  assert row.pixels.shape == (6, 16, 1, 2, 2, 3)
  place = row.place.reshape(-1, 2)
  pixels = row.pixels.reshape(-1, 2, 2, 3)
  here = place[:, 0] >= 0
  assert here.sum() == 10 * 6 and (place[~here] == -1).all()
  for (i, j), patch in zip(place[here], pixels[here]):
    expected = picture[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
    np.testing.assert_array_equal(patch, expected)
  corners = place.reshape(-1, 4, 2)[row.order]
  for token, four in enumerate(corners):
    i, j = divmod(token, 3)
    expected = [(2 * i + a, 2 * j + b) for a in (0, 1) for b in (0, 1)]
    assert [tuple(x) for x in four] == expected
  window = place.reshape(6, 16, 2) // 4
  for one in window:
    assert len({tuple(x) for x in one if x[0] >= 0}) == 1


def test_a_video_is_pairs_of_frames_and_the_last_frame_fills_up():
  video = _picture(3, 8, 8)
  row, grid = patches.encode_picture(video, VIDEO)
  assert grid == Grid(2, 2, 2)
  np.testing.assert_array_equal(row.frame, [0, 1])
  first = row.pixels[:, 0]  # upper left patch of each window
  np.testing.assert_array_equal(first[0], video[:2, :2, :2])
  np.testing.assert_array_equal(first[1], video[[2, 2], :2, :2])
  still, _ = patches.encode_picture(video[0], VIDEO)
  np.testing.assert_array_equal(still.pixels[:, :, 0], still.pixels[:, :, 1])


def test_pictures_share_a_row_and_keep_apart():
  first, second = _picture(8, 12), _picture(4, 8, seed=1)
  row, grids = patches.encode([first, second], SMALL, name="a")
  assert grids == [Grid(1, 2, 3), Grid(1, 1, 2)]
  np.testing.assert_array_equal(row.frame, [0, 0, 1, -1, -1, -1])
  alone, _ = patches.encode_picture(second, SMALL)
  np.testing.assert_array_equal(row.pixels[2:3], alone.pixels)
  np.testing.assert_array_equal(row.order[6:8], alone.order + 2 * 4)
  assert (row.place[3:] == -1).all()
  assert len(row.order) == 6 * 4


def test_without_pictures_the_row_is_empty():
  row, grids = patches.encode([], SMALL, name="a")
  assert grids == [] and (row.place == -1).all() and not row.pixels.any()


def test_positions_by_hand():
  """Text, 2 x 3 tokens, text: what follows starts behind the largest."""
  is_image = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0], bool)
  got = patches.positions(is_image, [Grid(1, 2, 3)], SMALL)
  expected = [
    *([0, 0, 0], [1, 1, 1]),
    *([2, 2, 2], [2, 2, 3], [2, 2, 4], [2, 3, 2], [2, 3, 3], [2, 3, 4]),
    *([5, 5, 5], [6, 6, 6]),
  ]
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
  "seconds, times",
  # 2 positions a second, 2 frames a patch: 4 * seconds a step, rounded down.
  [(0.5, [0, 2, 4]), (0.3, [0, 1, 2]), (2.0, [0, 8, 16])],
)
def test_time_in_a_video_passes_at_its_own_pace(seconds, times):
  """As in the code the model was trained with, text waits for the video."""
  layout = dataclasses.replace(VIDEO, seconds_per_frame=seconds)
  is_image = np.array([0, 1, 1, 1, 0], bool)
  got = patches.positions(is_image, [Grid(3, 1, 1)], layout)
  np.testing.assert_array_equal(got[1:4, 0], np.add(times, 1))
  assert (got[1:4, 1:] == 1).all()
  assert (got[4] == times[-1] + 2).all()


@pytest.mark.parametrize(
  "pictures, layout, message",
  [
    ([_picture(20, 20)], SMALL, "sample a: its pictures take 9 windows and"),
    ([_picture(401, 2)], SMALL, "sample a: a picture of 401 x 2 pixels"),
    ([_picture(2, 8, 8)], SMALL, "sample a holds a video .*frames to 2"),
    ([_picture(4, 4)] * 4, SMALL, "sample a has 4 pictures and there is room"),
  ],
)
def test_what_does_not_fit_names_the_sample(pictures, layout, message):
  with pytest.raises(InputError, match=message):
    images.encode(pictures, layout, name="a")


def test_a_prompt_carries_patches_and_positions():
  words = tokenizer.build(["What is it?", "user", "assistant", "\n"])
  words.add_special_tokens({"additional_special_tokens": list(QWEN_TOKENS)})
  layout = loader.Layout(24, 4, VIDEO, templates.QWEN)
  pictures = (_picture(4, 8), _picture(3, 4, 4))
  row = loader.encode_prompt(
    Example("a", pictures, "What is it?", ""), 0, words, layout
  )
  text = words.decode(row.tokens[row.mask])
  image = "<|image_pad|>" * 2
  # The video's two tokens look like those of a picture.
  pair = f"<|vision_start|>{image}<|vision_end|>"
  assert f"user\n{pair}{pair}What is it?" in text
  assert row.images.frame.tolist() == [0, 1, 2, -1, -1, -1]
  assert row.positions.shape == (24, 3)
  assert (row.positions[~row.mask] == 0).all()
  # The picture's two tokens take two positions, the video's two take three.
  assert (row.positions[-1] == row.mask.sum()).all()


def test_a_prompt_without_pictures_counts_its_tokens():
  words = tokenizer.build(["What is it?", "user", "assistant", "\n"])
  words.add_special_tokens({"additional_special_tokens": list(QWEN_TOKENS)})
  layout = loader.Layout(16, 4, SMALL, templates.QWEN)
  row = loader.encode_prompt(
    Example("a", (), "What is it?", ""), 0, words, layout
  )
  count = np.arange(row.mask.sum())
  for axis in row.positions[row.mask].T:
    np.testing.assert_array_equal(axis, count)


@pytest.mark.parametrize("tokens, side, aspect", [(64, 4, 4), (50, 2, 3)])
def test_windows_are_enough_for_every_shape(tokens, side, aspect):
  shapes = [
    (h, w)
    for h in range(1, tokens + 1)
    for w in range(1, tokens // h + 1)
    if max(h, w) <= aspect * min(h, w)
  ]
  need = max(-(-h // side) * -(-w // side) for h, w in shapes)
  assert patches.enough_windows(tokens, side, aspect) == need
