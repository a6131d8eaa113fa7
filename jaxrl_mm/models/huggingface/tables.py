"""Tables between our weights and the tensors of published checkpoints.

One line maps one leaf of the params tree, in both directions:

  Entry(
    "decoder/layers/attention/q/kernel",
    "model.layers.{l}.self_attn.q_proj.weight",
    "l d h e = (h e) d",
  )

The braces name the axes of our leaf along which separate tensors are stacked.
All sizes come from our leaf, so nothing else needs to be said.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from jaxrl_mm import pytree

_TILE = 128  # elements along each side of a tile that stays in the cache
_BRACES = re.compile(r"\{(\w)(?::([^}]*))?\}")


class Entry(NamedTuple):
  """One leaf of ours, and the tensors it is made of.

  Attributes:
    ours: path of the leaf, parts joined by `/`.
    theirs: template of the tensors' names. `{l}` counts 0 to n - 1 along axis
      l of our leaf; `{c:q_proj|k_proj|v_proj}` lists the names along axis c.
    axes: "our axes = their axes". A group in parentheses is a flattened
      product; 1 stands for an axis of size one.
  """

  ours: str
  theirs: str
  axes: str


class Layout(NamedTuple):
  """An `Entry` with the sizes of its leaf filled in.

  Attributes:
    names: index along the stacked axes -> name of a tensor.
    stacked: which axes of our leaf are stacked.
    shape: of each tensor.
    split: the same with groups opened and axes of size one left out.
    order: the axes of `split` in our order.
    ours: shape of our leaf without the stacked axes.
  """

  names: dict[tuple[int, ...], str]
  stacked: tuple[int, ...]
  shape: tuple[int, ...]
  split: tuple[int, ...]
  order: tuple[int, ...]
  ours: tuple[int, ...]


def layout(entry: Entry, shape: Sequence[int]) -> Layout:
  """Fills the sizes of a leaf into its line of the table.

  Raises:
    ValueError: the line contradicts itself or the shape of the leaf.
  """
  left, right = (side.strip() for side in entry.axes.split("="))
  left = left.split()
  groups = [token.strip("()").split() for token in _tokens(right)]
  choices = {m[1]: m[2] for m in _BRACES.finditer(entry.theirs)}
  sizes = dict(zip(left, shape)) | {"1": 1}
  flat = [a for group in groups for a in group if a != "1"]
  inner = [a for a in left if a not in choices and a != "1"]
  ones = all(n == 1 for a, n in zip(left, shape) if a == "1")
  if (
    len(left) != len(shape)
    or not ones
    or sorted(flat) != sorted(inner)
    or len(set(flat)) != len(flat)
    or not choices.keys() <= set(left)
  ):
    raise ValueError(f"{entry} does not describe the shape {tuple(shape)}")
  stacked = tuple(i for i, a in enumerate(left) if a in choices)
  return Layout(
    names=_names(entry, {left[i]: shape[i] for i in stacked}, choices),
    stacked=stacked,
    shape=tuple(math.prod(sizes[a] for a in group) for group in groups),
    split=tuple(sizes[a] for a in flat),
    order=tuple(flat.index(a) for a in inner),
    ours=tuple(n for i, n in enumerate(shape) if i not in stacked),
  )


def to_ours(
  x: Shaped[np.ndarray, "..."], how: Layout
) -> Shaped[np.ndarray, "..."]:
  """A view of one of their tensors with our axes, but for the stacked ones."""
  return x.reshape(how.split).transpose(how.order).reshape(how.ours)


def copy(out: Shaped[np.ndarray, "..."], x: Shaped[np.ndarray, "..."]) -> None:
  """`out[...] = x` with a cast, tile by tile where the fast axes differ.

  An element at a time in the order of one side would fetch a cache line of the
  other for each; a tile is copied in the order of `x` and turned in the cache.
  """
  if out.dtype == x.dtype:
    # numpy moves plain integers faster than the extension type bfloat16.
    bits = f"u{out.itemsize}"
    out, x = out.view(bits), x.view(bits)
  fast = {_fast_axis(out), _fast_axis(x)}
  if len(fast) == 1:
    out[...] = x
    return
  sides = [_TILE if axis in fast else 1 for axis in range(x.ndim)]
  corners = (range(0, n, side) for n, side in zip(x.shape, sides))
  for corner in itertools.product(*corners):
    tile = tuple(slice(i, i + side) for i, side in zip(corner, sides))
    out[tile] = x[tile].astype(out.dtype)


def layouts(entries: Sequence[Entry], shapes: Any) -> dict[str, Layout]:
  """The layout of every leaf, by its path.

  Args:
    entries: a table.
    shapes: a tree of arrays or shapes.

  Raises:
    ValueError: a leaf has no line or several, a line has no leaf, two lines
      name one tensor, or a line does not fit its leaf.
  """
  leaves = dict(pytree.named_leaves(shapes))
  lines = Counter(entry.ours for entry in entries)
  odd = [
    f"{name} has {lines[name]} lines and {int(name in leaves)} leaves"
    for name in sorted(lines.keys() | leaves.keys())
    if lines[name] != 1 or name not in leaves
  ]
  if odd:
    raise ValueError(f"the table does not match the weights: {odd}")
  found = {e.ours: layout(e, leaves[e.ours].shape) for e in entries}
  names = Counter(n for how in found.values() for n in how.names.values())
  twice = [name for name, count in names.items() if count > 1]
  if twice:
    raise ValueError(f"several weights are made of the tensors {twice}")
  return found


def _fast_axis(x: Shaped[np.ndarray, "..."]) -> int:
  """The axis along which elements lie closest together."""
  steps = [s if n > 1 else math.inf for s, n in zip(x.strides, x.shape)]
  return min(range(x.ndim), key=steps.__getitem__, default=0)


def _tokens(axes: str) -> list[str]:
  """`'(h e) d'` -> `['(h e)', 'd']`."""
  return re.findall(r"\([^)]*\)|\S+", axes)


def _names(
  entry: Entry, sizes: Mapping[str, int], choices: Mapping[str, str | None]
) -> dict[tuple[int, ...], str]:
  """The template filled in for every index along the stacked axes."""
  options = {
    a: choices[a].split("|") if choices[a] else [str(i) for i in range(n)]
    for a, n in sizes.items()
  }
  if any(len(options[a]) != n for a, n in sizes.items()):
    raise ValueError(f"{entry} lists another number of names than {sizes}")
  names = {}
  for index in itertools.product(*map(range, sizes.values())):
    pick = {a: options[a][i] for a, i in zip(sizes, index)}
    names[index] = _BRACES.sub(lambda m, pick=pick: pick[m[1]], entry.theirs)
  return names
