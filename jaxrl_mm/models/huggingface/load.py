"""Published weights onto the devices, each process its own slices only."""

import itertools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, Shaped

from jaxrl_mm import pytree
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import vlm
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.huggingface import families, safetensors
from jaxrl_mm.models.huggingface.safetensors import Files
from jaxrl_mm.models.huggingface.tables import (
  Entry,
  Layout,
  copy,
  layouts,
  to_ours,
)
from jaxrl_mm.models.param_axes import param_shardings

# Slices read at a time. More than the cores only pass the interpreter around.
READERS = min(32, os.cpu_count() or 1)
_ALIGNMENT = 64  # bytes; a CPU device takes such a buffer without a copy
_SHOWN = 12  # problems a message lists

Bounds = tuple[tuple[int, int], ...]


def load_params(
  folder: Path, config: ModelConfig, mesh: Mesh, parts: Sequence[str] = ()
) -> vlm.Params:
  """The weights of a published checkpoint, laid out over a mesh.

  Args:
    folder: holds config.json and safetensors.
    config: as `families.read_config(folder)` reads it; `param_dtype` may be
      another than the checkpoint's, weights are cast on the way.
    mesh: the mesh.
    parts: names of the parts to read, "vision" for example; none reads all.

  Raises:
    InputError: the checkpoint is damaged or does not fit `config`. All
      tensors are checked before the first weight is read.
  """
  family = families.family(folder)
  files = safetensors.scan(folder)
  shapes = jax.eval_shape(lambda k: vlm.init(config, k), jax.random.key(0))
  unused = family.UNUSED
  if config.decoder.tied:  # some checkpoints store the tied weights twice
    unused = (*unused, r".*lm_head\.weight")
  entries = family.table(config, files.tensors.keys() | files.lost)
  if parts:
    shapes = {name: shapes[name] for name in parts}
    entries = [e for e in entries if e.ours.split("/")[0] in parts]
    unused = (".*",)
  return load_tree(
    files, entries, shapes, param_shardings(mesh, shapes), unused
  )


def load_tree(
  files: Files,
  entries: Sequence[Entry],
  shapes: Any,
  shardings: Any,
  unused: Sequence[str] = (),
) -> Any:
  """Fills a tree of any shape from a checkpoint.

  A process reads the slices that its devices hold, each once however many
  devices hold it. Host memory beside the results is that of `READERS` slices;
  pages of the files are mapped, and the system drops them at will.

  Args:
    files: of `safetensors.scan`.
    entries: one for each leaf.
    shapes: a tree of shapes with the dtypes wanted.
    shardings: a sharding for each leaf.
    unused: patterns of tensor names that the checkpoint may carry besides.

  Raises:
    InputError: the files are damaged or do not fit `shapes`; says all at once.
    ValueError: `entries` do not fit `shapes`.
  """
  by_name = layouts(entries, shapes)
  check(files, by_name, unused)
  leaves = pytree.named_leaves(shapes)
  places = dict(pytree.named_leaves(shardings))
  with ThreadPoolExecutor(READERS) as pool:
    started = [
      (
        leaf,
        places[name],
        _start(pool, files, by_name[name], leaf, places[name]),
      )
      for name, leaf in leaves
    ]
    loaded = [
      jax.make_array_from_single_device_arrays(
        leaf.shape, sharding, [x for part in parts for x in part.result()]
      )
      for leaf, sharding, parts in started
    ]
  return jax.tree.unflatten(jax.tree.structure(shapes), loaded)


def check(
  files: Files, by_name: dict[str, Layout], unused: Sequence[str]
) -> None:
  """Raises one InputError with everything wrong with a checkpoint.

  Args:
    files: of `safetensors.scan`.
    by_name: of `tables.layouts`.
    unused: patterns of tensor names that need no leaf.
  """
  wanted = {
    tensor: how.shape
    for how in by_name.values()
    for tensor in how.names.values()
  }
  extra = [
    f"'{name}' is not part of the model"
    for name in files.tensors.keys() - wanted.keys()
    if not any(pytree.matches(pattern, name) for pattern in unused)
  ]
  misfits = [
    _misfit(name, files, shape) for name, shape in sorted(wanted.items())
  ]
  problems = [*files.problems, *filter(None, misfits), *sorted(extra)]
  if problems:
    more = len(problems) - _SHOWN
    raise InputError(
      f"the checkpoint {files.folder} "
      + ("is half-downloaded or damaged" if files.problems else "does not fit")
      + f" ({len(problems)} problems: {'; '.join(problems[:_SHOWN])}"
      + (f"; and {more} more" if more > 0 else "")
      + ("); download it again" if files.problems else "); name another one")
    )


def _misfit(name: str, files: Files, shape: tuple[int, ...]) -> str:
  """What is wrong with one tensor, or nothing."""
  tensor = files.tensors.get(name)
  if tensor is None:
    return "" if name in files.lost else f"'{name}' is missing"
  if tensor.shape != shape:
    return f"'{name}' has shape {tensor.shape} and should have {shape}"
  if tensor.dtype not in safetensors.FLOATS:
    known = ", ".join(safetensors.FLOATS)
    return f"'{name}' has dtype {tensor.dtype}, which is none of {known}"
  return ""


def _start(
  pool: ThreadPoolExecutor,
  files: Files,
  how: Layout,
  leaf: jax.ShapeDtypeStruct,
  sharding: Sharding,
) -> list[Any]:
  """Futures of the arrays of this process's devices, one a distinct slice."""
  holders: dict[Bounds, list[jax.Device]] = {}
  indices = sharding.addressable_devices_indices_map(leaf.shape)
  for device, index in indices.items():
    bounds = tuple(s.indices(n)[:2] for s, n in zip(index, leaf.shape))
    holders.setdefault(bounds, []).append(device)
  return [
    pool.submit(_place, files, how, bounds, leaf.dtype, devices)
    for bounds, devices in holders.items()
  ]


def _place(
  files: Files,
  how: Layout,
  bounds: Bounds,
  dtype: np.dtype,
  devices: Sequence[jax.Device],
) -> list[Array]:
  """One slice on all devices that hold it.

  Waits for the transfer, or buffers of slices yet to come would pile up.
  """
  part = read_slice(files, how, bounds, dtype)
  return jax.block_until_ready([jax.device_put(part, d) for d in devices])


def read_slice(
  files: Files, how: Layout, bounds: Bounds, dtype: np.dtype
) -> Shaped[np.ndarray, "..."]:
  """A slice of one of our leaves, in host memory.

  Args:
    files: of `safetensors.scan`.
    how: the layout of the leaf.
    bounds: start and end along each axis of the leaf.
    dtype: of the result.
  """
  out = _empty([stop - start for start, stop in bounds], dtype)
  stacked = [bounds[axis] for axis in how.stacked]
  rest = tuple(
    slice(*b) for axis, b in enumerate(bounds) if axis not in how.stacked
  )
  for index in itertools.product(*(range(*b) for b in stacked)):
    where = [slice(None)] * out.ndim + [...]
    for axis, i, (start, _) in zip(how.stacked, index, stacked):
      where[axis] = i - start
    tensor = safetensors.view(files.tensors[how.names[index]])
    copy(out[tuple(where)], to_ours(tensor, how)[(*rest, ...)])
  return out


def _empty(shape: Sequence[int], dtype: np.dtype) -> Shaped[np.ndarray, "..."]:
  """Uninitialised memory that starts at a multiple of `_ALIGNMENT`."""
  size = math.prod(shape) * dtype.itemsize
  raw = np.empty(size + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + size].view(dtype).reshape(shape)
