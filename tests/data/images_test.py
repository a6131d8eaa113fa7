import itertools

import numpy as np
import pytest
from PIL import Image

from jaxrl_mm.data import images


def _grid(width, height, image_size, max_tiles):
  """The rule said at once: of the grids whose aspect is closest, the smallest,
  or the largest of those that the picture's pixels fill more than half.

  Close is meant in floats, as in the code the checkpoints were trained with.
  """
  sizes = range(1, max_tiles + 1)
  grids = [
    g for g in itertools.product(sizes, sizes) if np.prod(g) <= max_tiles
  ]
  gaps = np.array([abs(width / height - i / j) for i, j in grids])
  tied = [grids[i] for i in np.flatnonzero(gaps == gaps.min())]
  filled = [g for g in tied if width * height > image_size**2 * np.prod(g) / 2]
  return max(filled, key=np.prod) if filled else min(tied, key=np.prod)


SIDES = (1, 30, 224, 300, 333, 448, 512, 640, 800, 896, 1080, 1344, 1920, 4000)


@pytest.mark.parametrize("max_tiles", [1, 2, 4, 6, 12])
def test_grid_against_the_rule(max_tiles):
  for width, height in itertools.product(SIDES, SIDES):
    got = images.grid(width, height, image_size=448, max_tiles=max_tiles)
    expected = _grid(width, height, 448, max_tiles)
    assert got == expected, (width, height)


@pytest.mark.parametrize(
  "width, height, columns, rows",
  [
    (640, 480, 4, 3),
    (1920, 1080, 4, 2),
    (448, 448, 1, 1),
    (600, 600, 1, 1),  # 360,000 pixels, half of 2 x 2 tiles is 401,408
    (700, 700, 2, 2),
    (5000, 5000, 3, 3),
    (448, 896, 1, 2),
    (100, 5000, 1, 12),
  ],
)
def test_worked_examples(width, height, columns, rows):
  got = images.grid(width, height, image_size=448, max_tiles=12)
  assert got == (columns, rows)


@pytest.mark.parametrize(
  "width, height, tiles", [(640, 480, 13), (1920, 1080, 9), (448, 448, 1)]
)
def test_several_tiles_get_a_thumbnail(width, height, tiles):
  picture = np.zeros((height, width, 3), np.uint8)
  cut = images.tile(picture, image_size=448, max_tiles=12)
  assert cut.shape == (tiles, 448, 448, 3)
  assert cut.dtype == np.uint8


def test_tiles_go_row_by_row_and_the_thumbnail_is_last():
  # Six flat squares, 3 columns by 2 rows, numbered as they are read.
  numbers = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
  picture = np.kron(numbers, np.ones((64, 64), np.uint8))
  picture = np.repeat(picture[..., None], 3, axis=2)
  cut = images.tile(picture, image_size=32, max_tiles=6)
  assert len(cut) == 7
  middles = cut[:6, 16, 16, 0]
  np.testing.assert_array_equal(middles, numbers.ravel())
  whole = Image.fromarray(picture).resize((32, 32), Image.BICUBIC)
  np.testing.assert_array_equal(cut[-1], np.asarray(whole))


def test_each_tile_is_a_crop_of_the_resized_picture():
  rng = np.random.default_rng(0)
  picture = rng.integers(256, size=(50, 90, 3)).astype(np.uint8)
  columns, rows = images.grid(90, 50, image_size=16, max_tiles=4)
  whole = Image.fromarray(picture).resize(
    (16 * columns, 16 * rows), Image.BICUBIC
  )
  cut = images.tile(picture, image_size=16, max_tiles=4)
  for i in range(columns * rows):
    left, top = 16 * (i % columns), 16 * (i // columns)
    crop = whole.crop((left, top, left + 16, top + 16))
    np.testing.assert_array_equal(cut[i], np.asarray(crop))


def test_one_tile_of_its_own_size_is_the_picture_itself():
  rng = np.random.default_rng(0)
  picture = rng.integers(256, size=(8, 8, 3)).astype(np.uint8)
  cut = images.tile(picture, image_size=8, max_tiles=1)
  np.testing.assert_array_equal(cut, picture[None])
