"""Our weights as a checkpoint that others read: safetensors, index, config."""

import functools
import itertools
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Int, Shaped

from jaxrl_mm import pytree, sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.models.huggingface import safetensors
from jaxrl_mm.models.huggingface.tables import (
  Entry,
  Layout,
  copy,
  layout,
  layouts,
  to_ours,
)

# Configs, tokenizer and processor files, chat templates, remote code.
_COPIED = ".json", ".jinja", ".txt", ".model", ".py"


class _Piece(NamedTuple):
  """One tensor to write: a leaf, and where in it along the stacked axes."""

  leaf: Array
  how: Layout
  index: tuple[int, ...]
  dtype: np.dtype


def save_params(
  params: Any,
  entries: Sequence[Entry],
  folder: Path,
  *,
  like: Path | None,
  shard_bytes: int = 5_000_000_000,
  dtype: str | None = "bfloat16",
) -> None:
  """Writes weights under the names and shapes of a published checkpoint.

  All processes call it; the first one writes, and one tensor at a time is
  whole in its memory. The folder appears under its name when it is whole.

  Args:
    params: a tree of arrays.
    entries: one for each leaf, as `load_tree` takes them.
    folder: must not exist, or be empty.
    like: a checkpoint whose configs, tokenizer and code are copied, but for
      the dtype that config.json names. Where it stores tied output embeddings,
      they are written as well.
    shard_bytes: files are cut before they grow beyond this.
    dtype: of all tensors, float64, float32, float16 or bfloat16; None keeps
      that of each tensor in `like`, or of its leaf where `like` has none.

  Raises:
    InputError: the folder is taken, the disk is full, `like` is no folder.
    ValueError: `entries` do not fit `params`.
  """
  pieces = _pieces(params, entries, like, dtype and _float(dtype))
  files = _files(pieces, shard_bytes)
  leads = jax.process_index() == 0
  total = sum(map(_nbytes, pieces.values()))
  _agree(_refusal(folder, like, total) if leads else "")
  order = [pieces[name] for names in files.values() for name in names]
  arrays, problem = map(_fetch, order), ""
  try:
    if leads:
      _write(folder, like, files, pieces, dtype, arrays)
  except OSError as error:
    problem = (
      f"the checkpoint {folder} could not be written ({error.strerror}); it "
      f"takes {total / 1e9:.3f} GB, so make room or name another folder"
    )
  if jax.process_count() > 1:
    for _ in arrays:  # every process takes part in each gather
      pass
  _agree(problem)


def _float(name: str) -> np.dtype:
  """`'bfloat16'` -> its dtype."""
  known = {str(dtype): dtype for dtype in safetensors.FLOATS.values()}
  if name not in known:
    raise InputError(f"dtype = {name} is none of {', '.join(known)}; name one")
  return known[name]


def _pieces(
  params: Any,
  entries: Sequence[Entry],
  like: Path | None,
  dtype: np.dtype | None,
) -> dict[str, _Piece]:
  """Every tensor to write, by its name."""
  stored = {}
  if like and any(like.glob("*.safetensors")):
    stored = safetensors.scan(like).tensors
  leaves = dict(pytree.named_leaves(params))
  parts = [
    (leaves[name], how) for name, how in layouts(entries, params).items()
  ]
  written = {name for _, how in parts for name in how.names.values()}
  for name in stored.keys() - written:
    if pytree.matches(r"(.*\.)?lm_head\.weight", name):
      tied = leaves["embedder/table"]
      entry = Entry("embedder/table", name, "v d = v d")
      parts.append((tied, layout(entry, tied.shape)))
  kept = {n: safetensors.FLOATS[stored[n].dtype] for n in stored}
  return {
    name: _Piece(leaf, how, index, dtype or kept.get(name, leaf.dtype))
    for leaf, how in parts
    for index, name in how.names.items()
  }


def _files(
  pieces: Mapping[str, _Piece], shard_bytes: int
) -> dict[str, list[str]]:
  """File -> names of its tensors, cut before `shard_bytes`."""
  alone = [name for name in pieces if name.startswith("v_head.")]
  shards, free = [], 0
  for name in pieces:
    if name in alone:
      continue
    size = _nbytes(pieces[name])
    if not shards or size > free:
      shards.append([])
      free = shard_bytes
    shards[-1].append(name)
    free -= size
  n = len(shards)
  files = {
    f"model-{i:05}-of-{n:05}.safetensors"
    if n > 1
    else safetensors.SINGLE: shard
    for i, shard in enumerate(shards, 1)
  }
  return files | ({safetensors.VALUE_HEAD: alone} if alone else {})


def _nbytes(piece: _Piece) -> int:
  return math.prod(piece.how.shape) * piece.dtype.itemsize


def _refusal(folder: Path, like: Path | None, total: int) -> str:
  """Why the checkpoint cannot be written, or nothing."""
  if like is not None and not like.is_dir():
    return f"like = {like} is no folder; name a checkpoint or None"
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    return f"{folder} exists already; remove it or name another folder"
  free = _free_bytes(folder)
  if free < total:
    return (
      f"the checkpoint {folder} takes {total / 1e9:.3f} GB and its disk has "
      f"{free / 1e9:.3f} GB left; make room or name another folder"
    )
  return ""


def _free_bytes(folder: Path) -> int:
  """What is left on the disk where the folder will be."""
  parent = next(p for p in folder.absolute().parents if p.exists())
  return shutil.disk_usage(parent).free


def _agree(problem: str) -> None:
  """Stops all processes when the first one has a problem."""
  if sharding.sum_over_processes(float(bool(problem))):
    raise InputError(
      problem or "process 0 could not write the checkpoint; read its message"
    )


def _write(
  folder: Path,
  like: Path | None,
  files: Mapping[str, Sequence[str]],
  pieces: Mapping[str, _Piece],
  dtype: str | None,
  arrays: Iterator[Shaped[np.ndarray, "..."]],
) -> None:
  """Writes a folder beside `folder`, then renames it."""
  partial = folder.with_name(folder.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    for path in sorted(like.iterdir()) if like else ():
      if path.suffix in _COPIED and path.name != safetensors.INDEX:
        shutil.copyfile(path, partial / path.name)
    if like and dtype:
      _name_dtype(partial / "config.json", dtype)
    for file, names in files.items():
      leaves = {
        name: jax.ShapeDtypeStruct(pieces[name].how.shape, pieces[name].dtype)
        for name in names
      }
      own = itertools.islice(arrays, len(names))
      safetensors.write(partial / file, leaves, own)
    if safetensors.SINGLE not in files:
      _write_index(partial, files, sum(map(_nbytes, pieces.values())))
    partial.rename(folder)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _name_dtype(config: Path, dtype: str) -> None:
  """Corrects what config.json says of the weights; else it stays as it is.

  Readers make the weights of the dtype they find there.
  """
  if not config.exists():
    return
  old = json.loads(config.read_bytes())
  new = _with_dtype(old, dtype)
  if new != old:
    text = json.dumps(new, indent=2, ensure_ascii=False) + "\n"
    config.write_text(text, encoding="utf-8")


def _with_dtype(fields: Any, dtype: str) -> Any:
  """The same object with the dtypes it names, at any depth, replaced."""
  if not isinstance(fields, dict):
    return fields
  names = "dtype", "torch_dtype"
  return {
    name: dtype if name in names and value else _with_dtype(value, dtype)
    for name, value in fields.items()
  }


def _write_index(
  folder: Path, files: Mapping[str, Sequence[str]], total: int
) -> None:
  """The index of all shards; the value head is not part of it.

  Args:
    folder: where it goes.
    files: file -> names of its tensors.
    total: bytes of all tensors.
  """
  places = {
    name: file
    for file, names in files.items()
    if file != safetensors.VALUE_HEAD
    for name in names
  }
  index = {"metadata": {"total_size": total}, "weight_map": places}
  text = json.dumps(index, indent=2, sort_keys=True)
  (folder / safetensors.INDEX).write_text(text + "\n")


def _fetch(piece: _Piece) -> Shaped[np.ndarray, "..."]:
  """One tensor in host memory, with their axes."""
  part = _take(piece.leaf, np.array(piece.index, np.int32), piece.how.stacked)
  if part.is_fully_addressable:
    host = np.asarray(part)
  else:
    host = multihost_utils.process_allgather(part, tiled=True)
  host = host.view(piece.leaf.dtype)
  out = np.empty(piece.how.shape, piece.dtype)
  copy(to_ours(out, piece.how), host)
  return out


@functools.partial(jax.jit, static_argnums=2)
def _take(
  leaf: Array, index: Int[Array, " n"], stacked: tuple[int, ...]
) -> Array:
  """One index along each stacked axis; nothing else leaves the devices.

  As bits: a compiler may make another NaN of a NaN.
  """
  leaf = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
  for i, axis in reversed(list(enumerate(stacked))):
    leaf = jax.lax.dynamic_index_in_dim(leaf, index[i], axis, keepdims=False)
  return leaf
