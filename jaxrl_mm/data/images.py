"""Pictures to what the tower of a model reads; square tiles, as InternVL and
Skywork R1V cut them."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxrl_mm.data import patches
from jaxrl_mm.data.patches import Grid, Patching
from jaxrl_mm.errors import InputError
from jaxrl_mm.structs import Patches


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Pictures as square tiles, for InternVL towers.

  Attributes:
    max_tiles: tiles of one picture, its thumbnail not counted.
    image_size: side of a tile in pixels.
    tokens: image tokens one tile becomes.
    max_pictures: pictures of one prompt.
  """

  max_tiles: int
  image_size: int
  tokens: int
  max_pictures: int = 1

  @property
  def room(self) -> int:
    """N: room for all tiles and thumbnails of a prompt."""
    return self.max_pictures * (self.max_tiles + (self.max_tiles > 1))


class Encoded(NamedTuple):
  """The pictures of one prompt.

  Attributes:
    images: one row of `Prompts.images`.
    tokens: how many image tokens each picture becomes.
    grids: how the tokens of each picture lie, where the model wants to know.
  """

  images: np.ndarray | Patches | None
  tokens: list[int]
  grids: list[Grid] | None = None


def encode(
  pictures: Sequence[np.ndarray],
  layout: Tiles | Patching | None,
  *,
  name: str,
) -> Encoded:
  """The pictures of one prompt, for the tower `layout` is made for.

  Args:
    pictures: uint8 [height, width, 3] each, or [frames, height, width, 3].
    layout: what becomes of them; None for a model that sees none.
    name: of the sample, for messages.
  """
  limit = 0 if layout is None else layout.max_pictures
  if len(pictures) > limit:
    raise InputError(
      f"sample {name} has {len(pictures)} pictures and there is room for "
      f"{limit}; raise config.data.max_pictures"
    )
  if layout is None:
    return Encoded(None, [])
  if isinstance(layout, Patching):
    row, grids = patches.encode(pictures, layout, name=name)
    return Encoded(row, [grid.tokens for grid in grids], grids)
  size = layout.image_size
  cut = [
    tile(picture, image_size=size, max_tiles=layout.max_tiles)
    for picture in pictures
  ]
  pixels = np.zeros((layout.room, size, size, 3), np.uint8)
  if cut:
    tiles = np.concatenate(cut)
    pixels[: len(tiles)] = tiles
  return Encoded(pixels, [len(tiles) * layout.tokens for tiles in cut])


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
