import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxrl_mm.data import pictures
from jaxrl_mm.errors import InputError

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def _file(form="PNG", picture=None):
  buffer = io.BytesIO()
  (picture or Image.fromarray(PIXELS)).save(buffer, form)
  return buffer.getvalue()


def _text(content):
  return base64.b64encode(content).decode()


FORMS = {
  "path": lambda folder: "a/b.png",
  "url of a file": lambda folder: f"file://{folder}/a/b.png",
  "path of another machine": lambda folder: "/a/b.png",
  "bytes": lambda folder: _file(),
  "hub": lambda folder: {"bytes": _file(), "path": "gone.png"},
  "hub without bytes": lambda folder: {"bytes": None, "path": "a/b.png"},
  "base64": lambda folder: _text(_file()),
  "data url": lambda folder: f"data:image/png;base64,{_text(_file())}",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_is_read_in_every_form(tmp_path, form):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "b.png").write_bytes(_file())
  found = pictures.read(FORMS[form](tmp_path), tmp_path, "here")
  np.testing.assert_array_equal(found, PIXELS)


def test_base64_of_a_jpeg_is_no_path(tmp_path):
  text = _text(_file("JPEG", Image.new("RGB", (32, 32), (200, 10, 10))))
  assert text.startswith("/9j/")
  assert pictures.read(text, tmp_path, "here").shape == (32, 32, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
  content = _file(picture=Image.new(mode, (3, 2)))
  assert pictures.read(content, tmp_path, "here").shape == (2, 3, 3)


def _bomb():
  """A PNG of a few bytes that claims 30,000 x 30,000 pixels."""

  def part(kind, content):
    sum_ = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + sum_

  header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
  body = part(b"IDAT", zlib.compress(bytes(100)))
  return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + body


BAD = {
  "gone.png": "image .*gone.png does not exist",
  "x" * 5000: "does not exist",
  _file()[:-30]: "cannot read the image in the record",
  b"no picture": "cannot read the image in the record: it has no known",
  _bomb(): "cannot read the image .*(pixels|bomb)",
  b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "no known format",
  "data:image/png;base64,***": "no base64",
  5: "the image is int",
  "": "the image is str and holds no picture",
  None: "the image is NoneType",
}


@pytest.mark.parametrize("value", BAD, ids=lambda value: str(value)[:20])
def test_a_bad_picture_is_an_error_that_names_its_record(tmp_path, value):
  with pytest.raises(InputError, match="^set:7: .*" + BAD[value]):
    pictures.read(value, tmp_path, "set:7")


def test_too_many_pixels_are_refused_before_they_are_decoded(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(pictures, "MAX_PIXELS", 19)
  with pytest.raises(InputError, match="5 x 4 pixels are more than 19"):
    pictures.read(_file(), tmp_path, "here")
  monkeypatch.setattr(pictures, "MAX_PIXELS", 20)
  assert pictures.read(_file(), tmp_path, "here").shape == (4, 5, 3)
