"""Pictures to square tiles, as InternVL and Skywork R1V cut them."""

import numpy as np
from PIL import Image


def grid(
  width: int, height: int, *, image_size: int, max_tiles: int
) -> tuple[int, int]:
  """Columns and rows of tiles whose aspect is closest to the picture's.

  Among the grids of at most `max_tiles` tiles, by growing area; of two
  equally close ones the larger wins only if the picture has more than half
  of its pixels (`find_closest_aspect_ratio` of InternVL).

  Returns:
    (columns, rows).
  """
  sizes = range(1, max_tiles + 1)
  grids = [(i, j) for i in sizes for j in sizes if i * j <= max_tiles]
  grids.sort(key=lambda g: g[0] * g[1])
  best, best_gap = (1, 1), float("inf")
  for i, j in grids:
    gap = abs(width / height - i / j)
    large = width * height > 0.5 * image_size**2 * i * j
    if gap < best_gap or (gap == best_gap and large):
      best, best_gap = (i, j), gap
  return best


def tile(picture: np.ndarray, *, image_size: int, max_tiles: int) -> np.ndarray:
  """Cuts a picture into tiles, with a thumbnail if there are several.

  The picture is resized (bicubic) to the chosen grid and cut row by row.

  Args:
    picture: uint8 [height, width, 3].
    image_size: side of a tile in pixels.
    max_tiles: tiles at most, the thumbnail not counted.

  Returns:
    uint8 [N, image_size, image_size, 3].
  """
  image = Image.fromarray(picture)
  columns, rows = grid(*image.size, image_size=image_size, max_tiles=max_tiles)
  resize = lambda w, h: np.asarray(image.resize((w, h), Image.BICUBIC))
  cut = resize(image_size * columns, image_size * rows)
  cut = cut.reshape(rows, image_size, columns, image_size, 3)
  tiles = cut.swapaxes(1, 2).reshape(-1, image_size, image_size, 3)
  if len(tiles) > 1:
    tiles = np.concatenate([tiles, resize(image_size, image_size)[None]])
  return tiles
