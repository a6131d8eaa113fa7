"""Pictures to windows of patches and to places in a plane, for Qwen2.5-VL
(https://arxiv.org/abs/2502.13923)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxrl_mm.errors import InputError
from jaxrl_mm.structs import Patches

MAX_ASPECT = 200  # The model was never shown longer strips.
MIN_PIXELS = 56 * 56  # Smaller pictures are enlarged, as in its training.


@dataclasses.dataclass(frozen=True)
class Patching:
  """Pictures and videos of any size as windows of patches.

  Attributes:
    windows: W: room for the windows of all pictures of a prompt. A picture
      of h x w image tokens takes ceil(h / 4) * ceil(w / 4), a video as many
      for each pair of frames.
    max_pictures: pictures and videos of one prompt.
    min_pixels, max_pixels: of a picture (a frame) once it is resized.
    frames: of a patch as it travels to the device: the tower's, or 1 where
      there are no videos, which halves the bytes.
    seconds_per_frame: between two frames of a video.
    patch_size, window, shuffle, tower_frames, tokens_per_second: as the model
      has them (`window` counts patches along a side, `tokens_per_second` the
      rotary positions of a second of video).
  """

  windows: int
  max_pictures: int = 1
  min_pixels: int = MIN_PIXELS
  max_pixels: int = 28 * 28 * 1280
  frames: int = 1
  seconds_per_frame: float = 0.5
  patch_size: int = 14
  window: int = 8
  shuffle: int = 2
  tower_frames: int = 2
  tokens_per_second: float = 2.0

  @property
  def tokens_per_window(self) -> int:
    return (self.window // self.shuffle) ** 2


class Grid(NamedTuple):
  """The image tokens of a picture: along time, height and width."""

  time: int
  height: int
  width: int

  @property
  def tokens(self) -> int:
    return self.time * self.height * self.width


def enough_windows(tokens: int, side: int, aspect: int = 4) -> int:
  """Windows that any picture of so many image tokens fits in.

  Args:
    tokens: of the picture, at most.
    side: of a window, in tokens.
    aspect: how many times as long as wide a picture is at most.
  """
  up = lambda n: -(-n // side)
  return max(
    up(short) * up(min(tokens // short, aspect * short))
    for short in range(1, math.isqrt(tokens) + 1)
  )


def smart_size(
  height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
  """Height and width in multiples of `factor`, the aspect nearly kept.

  Each is rounded; where the area is then out of bounds both are scaled to the
  bound and rounded inwards.
  """
  sides = np.array([height, width])
  size = [round(side / factor) * factor for side in (height, width)]
  if math.prod(size) > max_pixels:
    scaled = sides / math.sqrt(height * width / max_pixels)
    size = np.maximum(np.floor(scaled / factor) * factor, factor)
  elif math.prod(size) < min_pixels:
    scaled = sides * math.sqrt(min_pixels / (height * width))
    size = np.ceil(scaled / factor) * factor
  return int(size[0]), int(size[1])


def resize(picture: np.ndarray, layout: Patching) -> np.ndarray:
  """Bicubic, antialiased, frame by frame: uint8 [F, height, width, 3].

  A still picture is one frame.
  """
  frames = picture if picture.ndim == 4 else picture[None]
  height, width = smart_size(
    *frames.shape[1:3],
    factor=layout.patch_size * layout.shuffle,
    min_pixels=layout.min_pixels,
    max_pixels=layout.max_pixels,
  )
  resized = [
    Image.fromarray(frame).resize((width, height), Image.BICUBIC)
    for frame in frames
  ]
  return np.stack([np.asarray(frame) for frame in resized])


def cut(x: np.ndarray, *, window: int, shuffle: int, fill: int) -> np.ndarray:
  """Windows of a plane, the shuffle^2 neighbours of a token side by side.

  Args:
    x: [time, rows, columns, ...].
    window: side of a window.
    shuffle: side of a token.
    fill: of the windows that reach over the edge.

  Returns:
    [windows, window^2, ...], row by row for each time.
  """
  rows, columns = (-n % window for n in x.shape[1:3])
  pad = [(0, 0), (0, rows), (0, columns)] + [(0, 0)] * (x.ndim - 3)
  x = np.pad(x, pad, constant_values=fill)
  side = window // shuffle
  x = x.reshape(
    x.shape[0],
    *(x.shape[1] // window, side, shuffle),
    *(x.shape[2] // window, side, shuffle),
    *x.shape[3:],
  )
  order = (0, 1, 4, 2, 5, 3, 6, *range(7, x.ndim))
  return x.transpose(order).reshape(-1, window**2, *x.shape[7:])


def encode_picture(
  picture: np.ndarray, layout: Patching
) -> tuple[Patches, Grid]:
  """One picture or video as it is, without spare room.

  The last frame of a video fills up the last patch. `frame` counts from 0.
  """
  p, shuffle = layout.patch_size, layout.shuffle
  frames = resize(picture, layout)
  if layout.frames > 1:
    spare = -len(frames) % layout.tower_frames
    frames = np.concatenate([frames, np.repeat(frames[-1:], spare, 0)])
  time = len(frames) // layout.frames
  rows, columns = (n // p for n in frames.shape[1:3])
  tubelets = frames.reshape(time, layout.frames, rows, p, columns, p, 3)
  tubelets = tubelets.transpose(0, 2, 4, 1, 3, 5, 6)
  place = np.stack(np.indices((rows, columns), np.int32), -1)
  place = np.tile(place, (time, 1, 1, 1))
  grid = Grid(time, rows // shuffle, columns // shuffle)
  windows = lambda x, fill: cut(
    x, window=layout.window, shuffle=shuffle, fill=fill
  )
  place = windows(place, -1)
  encoded = Patches(
    pixels=windows(tubelets, 0),
    place=place,
    frame=np.repeat(np.arange(time), len(place) // time).astype(np.int32),
    order=_order(grid, layout),
  )
  return encoded, grid


def _order(grid, layout):
  """Where, counted window by window, the i-th token of a picture lies."""
  number = np.arange(grid.tokens).reshape(grid)
  side = layout.window // layout.shuffle
  number = cut(number, window=side, shuffle=1, fill=-1).ravel()
  return np.argsort(number, kind="stable")[-grid.tokens :].astype(np.int32)


def encode(
  pictures: Sequence[np.ndarray], layout: Patching, *, name: str
) -> tuple[Patches, list[Grid]]:
  """All pictures of a prompt, in a row of static size, and their grids.

  Args:
    pictures: uint8, [height, width, 3] each or [frames, height, width, 3].
    layout: how they are cut, and how much room there is.
    name: of the sample, for messages.
  """
  for picture in pictures:
    _check(picture, layout, name)
  encoded = [encode_picture(picture, layout) for picture in pictures]
  used = sum(len(patches.frame) for patches, _ in encoded)
  if used > layout.windows:
    raise InputError(
      f"sample {name}: its pictures take {used} windows and there is room for "
      f"{layout.windows}; raise config.data.windows or lower "
      "config.data.max_pixels"
    )
  row = _empty(layout)
  window = frame = token = 0
  for patches, grid in encoded:
    here = slice(window, window + len(patches.frame))
    row.pixels[here] = patches.pixels
    row.place[here] = patches.place
    row.frame[here] = patches.frame + frame
    first = window * layout.tokens_per_window
    row.order[token : token + grid.tokens] = patches.order + first
    window, frame = here.stop, frame + grid.time
    token += grid.tokens
  return row, [grid for _, grid in encoded]


def _check(picture, layout, name):
  height, width = picture.shape[-3:-1]
  if max(height, width) > MAX_ASPECT * min(height, width):
    raise InputError(
      f"sample {name}: a picture of {height} x {width} pixels is more than "
      f"{MAX_ASPECT} times as long as it is wide; crop it"
    )
  if picture.ndim == 4 and layout.frames == 1:
    raise InputError(
      f"sample {name} holds a video and the patches travel with one frame; "
      f"set config.data.frames to {layout.tower_frames}"
    )


def _empty(layout):
  windows, per_window = layout.windows, layout.window**2
  patch = (layout.frames, layout.patch_size, layout.patch_size, 3)
  return Patches(
    pixels=np.zeros((windows, per_window, *patch), np.uint8),
    place=np.full((windows, per_window, 2), -1, np.int32),
    frame=np.full(windows, -1, np.int32),
    order=np.zeros(windows * layout.tokens_per_window, np.int32),
  )


def positions(
  is_image: np.ndarray, grids: Sequence[Grid], layout: Patching
) -> np.ndarray:
  """M-RoPE positions [S, 3] of a prompt, int32.

  Text counts on along all three axes. The tokens of a picture stand at their
  time, row and column behind the text before it; what follows starts behind
  the largest position so far, of whatever axis.

  Args:
    is_image: [S] where the placeholders are.
    grids: of the pictures, in the order of their placeholders.
    layout: with the pace of videos.
  """
  pace = layout.tokens_per_second * layout.seconds_per_frame
  places = []
  for grid in grids:
    place = np.stack(np.indices(grid), -1).reshape(-1, 3).astype(np.float64)
    place[:, 0] = np.floor(place[:, 0] * pace * layout.tower_frames)
    places.append(place.astype(np.int32))
  result = np.zeros((len(is_image), 3), np.int32)
  column = following = 0
  while column < len(is_image):
    run = places.pop(0) if is_image[column] else np.zeros((1, 3), np.int32)
    result[column : column + len(run)] = run + following
    column, following = column + len(run), following + int(run.max()) + 1
  return result
