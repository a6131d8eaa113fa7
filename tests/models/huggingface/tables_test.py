"""Lines of a table against transposes written by hand."""

import numpy as np
import pytest

from jaxrl_mm.models.huggingface import tables
from jaxrl_mm.models.huggingface.tables import Entry


def _numbers(*shape, dtype=np.float32):
  return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


LINES = {
  # axes, our shape, their shape, theirs to ours
  "same": ("d = d", (3,), (3,), lambda x: x),
  "turned": ("d f = f d", (2, 3), (3, 2), lambda x: x.T),
  "opened": (
    "d h e = (h e) d",
    (5, 2, 3),
    (6, 5),
    lambda x: x.reshape(2, 3, 5).transpose(2, 0, 1),
  ),
  "two groups": (
    "a b c d = (d a) (c b)",
    (2, 3, 4, 5),
    (10, 12),
    lambda x: x.reshape(5, 2, 4, 3).transpose(1, 3, 2, 0),
  ),
  "ones on our side": (
    "1 1 d = d",
    (1, 1, 4),
    (4,),
    lambda x: x.reshape(1, 1, 4),
  ),
  "ones on both sides": (
    "1 p d = d 1 p",
    (1, 2, 3),
    (3, 1, 2),
    lambda x: x.reshape(3, 2).T[None],
  ),
  "patches": (
    "p q c d = d c p q",
    (2, 3, 4, 5),
    (5, 4, 2, 3),
    lambda x: x.transpose(2, 3, 1, 0),
  ),
  "a number": ("1 = ", (1,), (), lambda x: x.reshape(1)),
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_gives_shape_and_view(line):
  axes, ours, theirs, by_hand = LINES[line]
  how = tables.layout(Entry("a", "b", axes), ours)
  assert how.shape == theirs
  assert how.names == {(): "b"}
  x = _numbers(*theirs)
  turned = tables.to_ours(x, how)
  np.testing.assert_array_equal(turned, by_hand(x))
  assert turned.shape == ours
  assert np.shares_memory(turned, x), "a view costs nothing"


def test_stacked_axes_count_and_choose():
  entry = Entry("qkv", "h.{l}.{c:q|k|v}.w", "l d c e = e d")
  how = tables.layout(entry, (2, 5, 3, 4))
  assert how.stacked == (0, 2)
  assert how.shape == (4, 5) and how.ours == (5, 4)
  assert list(how.names.values()) == [
    f"h.{l}.{c}.w" for l in range(2) for c in "qkv"
  ]
  assert how.names[1, 2] == "h.1.v.w"


@pytest.mark.parametrize(
  "theirs, axes, shape",
  [
    ("w", "a b = b a", (2,)),  # rank
    ("w", "a b = b", (2, 3)),  # a letter is gone
    ("w", "a = a b", (2,)),  # a letter from nowhere
    ("w", "a b = (a a) b", (2, 3)),  # twice
    ("w.{l}", "a b = b a", (2, 3)),  # braces name no axis
    ("w.{l}", "l b = l b", (2, 3)),  # stacked, and yet in each tensor
    ("w.{c:q|k|v}", "c b = b", (2, 3)),  # three names for two
    ("w", "1 b = b", (2, 3)),  # not of size one
    ("w", "(a b) = a b", (6,)),  # sizes that our leaf does not tell
  ],
)
def test_lines_that_contradict_are_refused(theirs, axes, shape):
  with pytest.raises(ValueError, match="Entry"):
    tables.layout(Entry("x", theirs, axes), shape)


def test_every_leaf_has_one_line_and_every_line_a_leaf():
  tree = {"a": {"b": _numbers(2)}, "c": _numbers(3, 4)}
  lines = [Entry("a/b", "t.b", "d = d"), Entry("c", "t.c", "d f = f d")]
  assert list(tables.layouts(lines, tree)) == ["a/b", "c"]
  with pytest.raises(ValueError, match="c has 0 lines and 1 leaves"):
    tables.layouts(lines[:1], tree)
  with pytest.raises(ValueError, match="c has 2 lines and 1 leaves"):
    tables.layouts([*lines, lines[1]], tree)
  with pytest.raises(ValueError, match="z has 1 lines and 0 leaves"):
    tables.layouts([*lines, Entry("z", "t.z", "d = d")], tree)
  twice = [lines[0], Entry("c", "t.b", "d f = f d")]
  with pytest.raises(ValueError, match="several weights.*t.b"):
    tables.layouts(twice, tree)


@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_copies_of_any_order_and_dtype(order, out_dtype):
  x = _numbers(3, 130, 257, dtype="float32") % 251
  x = x.astype("bfloat16").transpose(order)
  out = np.zeros(x.shape, out_dtype)
  tables.copy(out, x)
  assert (out == x.astype(out_dtype)).all()
  back = np.zeros((257, 3, 130), x.dtype).transpose(1, 2, 0).transpose(order)
  tables.copy(back, out)
  assert (back == x).all()


def test_copies_keep_every_bit():
  bits = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  out = np.zeros((256, 256), "bfloat16")
  tables.copy(out, bits.view("bfloat16").T)
  np.testing.assert_array_equal(out.view(np.uint16), bits.T)
