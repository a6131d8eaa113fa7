"""Pictures as records hold them: files, bytes, base64 and data URLs."""

import base64
import binascii
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from jaxrl_mm.errors import InputError

# A larger one is an attack on the memory, or useless: 8,192 x 8,192.
MAX_PIXELS = 1 << 26
# No format whose reader starts another program, as that of PostScript does.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# How base64 of these formats begins; a JPEG's could also be a path.
_BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkq", "TU0AK")
_SHORTEST_BASE64 = 80


def read(
  value: Any, folder: Path, where: str
) -> UInt8[np.ndarray, "height width 3"]:
  """A picture, decoded.

  Args:
    value: a path in `folder` (or an absolute one, with or without "file://"),
      the bytes of a file, base64 of them, a data URL, or what the hub's
      parquet files hold, `{"bytes", "path"}`.
    folder: where paths begin.
    where: who asks, for the message.

  Raises:
    InputError: there is no such picture, it is damaged or cut off, or has
      more than `MAX_PIXELS`.
  """
  file = io.BytesIO(content(value, folder, where))
  try:
    with Image.open(file, formats=_FORMATS) as image:
      _check_size(image)
      # A palette may have transparent colours, and Pillow warns of those.
      whole = image.convert("RGBA") if image.mode == "P" else image
      return np.asarray(whole.convert("RGB"))
  except Exception as error:  # Pillow raises all kinds on damaged files.
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "it has no known format" if unknown else error
    raise InputError(
      f"{where}: cannot read the image {_name(value)}: {reason}"
    ) from error


def content(value: Any, folder: Path, where: str) -> bytes:
  """The bytes of a picture's file, as `read` takes it.

  Raises:
    InputError: there is none.
  """
  if isinstance(value, dict):
    value = value.get("bytes") or value.get("path")
  if isinstance(value, bytes):
    return value
  if not isinstance(value, str) or not value:
    kind = type(value).__name__
    raise InputError(f"{where}: the image is {kind} and holds no picture")
  if value.startswith("data:"):
    return _decoded(value.partition(",")[2], where)
  if len(value) > _SHORTEST_BASE64 and value.startswith(_BASE64):
    return _decoded(value, where)
  return _file(value.removeprefix("file://"), folder, where)


def _name(value) -> str:
  if isinstance(value, dict):
    value = value.get("path")
  encoded = not isinstance(value, str) or value.startswith(("data:", *_BASE64))
  return "in the record" if encoded else value


def _check_size(image: Image.Image) -> None:
  """Before a pixel is decoded."""
  width, height = image.size
  if width * height > MAX_PIXELS:
    raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")


def _decoded(text, where) -> bytes:
  try:
    return base64.b64decode(text, validate=True)
  except binascii.Error as error:
    raise InputError(f"{where}: the image is no base64: {error}") from error


def _file(name, folder, where) -> bytes:
  """An absolute path may be that of the machine the set was made on."""
  for path in (folder / name.lstrip("/"), Path(name)):
    # Unlike Path.is_file, it has no error for names that are too long.
    if os.path.isfile(path):
      return path.read_bytes()
  raise InputError(f"{where}: the image {folder / name[:200]} does not exist")
