"""Checkpoint folders of safetensors: what lies where, as views of the files.

The `safetensors` package hides where a tensor lies and copies what it reads;
here a tensor is a view of the mapped file, and a slice of it reads no more than
its own pages. Headers come from strangers and are checked before they are used.
Format: https://github.com/huggingface/safetensors.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from jaxrl_mm.errors import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Reward models keep their linear head beside the index, in a file of its own.
VALUE_HEAD = "value_head.safetensors"

# What our weights may be read from and written to, by the format's names.
FLOATS = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(jnp.bfloat16),
}
_LONGEST_HEADER = 100_000_000  # the limit of the format
_PICKLES = "*.bin", "*.pt", "*.pth"
_UNFINISHED = "*.incomplete", "*.part", "*.partial", "*.crdownload"
_POINTER = b"version https://git-lfs"


class Tensor(NamedTuple):
  """Where a tensor lies: a file and a byte in it.

  Attributes:
    dtype: the format's name, such as "BF16".
  """

  file: Path
  offset: int
  nbytes: int
  dtype: str
  shape: tuple[int, ...]


class Files(NamedTuple):
  """What the headers of a folder say; no weight has been read.

  Attributes:
    folder: the folder.
    tensors: name -> where it lies.
    lost: names that the index promises in files that cannot be read.
    problems: what is wrong with the files, one phrase each.
  """

  folder: Path
  tensors: dict[str, Tensor]
  lost: frozenset[str]
  problems: tuple[str, ...]


def scan(folder: Path) -> Files:
  """Reads the headers of a checkpoint.

  Raises:
    InputError: the folder holds no safetensors at all.
  """
  promised, problems = _promised(folder)
  tensors, lost = {}, set()
  for name, names in promised.items():
    try:
      header = _read_header(folder / name)
    except _Unreadable as error:
      problems.append(f"{name} {error}")
      lost |= names
      continue
    short = _missing_bytes(folder / name, header)
    if short:
      problems.append(f"{name} is truncated, {short} bytes are missing")
    repeated = sorted(header.keys() & tensors.keys())
    problems += [f"'{n}' lies in two files, one is {name}" for n in repeated]
    tensors |= header
  return Files(folder, tensors, frozenset(lost), tuple(problems))


def view(tensor: Tensor) -> Shaped[np.ndarray, "..."]:
  """A read-only map of one tensor. Pages are read when they are touched."""
  mapped = np.memmap(
    tensor.file, FLOATS[tensor.dtype], "r", tensor.offset, tensor.shape
  )
  return np.asarray(mapped)  # slicing a memmap itself is slow


def write(
  file: Path,
  leaves: Mapping[str, jax.ShapeDtypeStruct],
  arrays: Iterable[Shaped[np.ndarray, "..."]],
) -> None:
  """Writes one file, tensor after tensor.

  Args:
    file: where to.
    leaves: name -> shape and dtype.
    arrays: in the order of `leaves`; each is released before the next is made.
  """
  header, offset = {"__metadata__": {"format": "pt"}}, 0
  for name, leaf in leaves.items():
    end = offset + leaf.size * leaf.dtype.itemsize
    header[name] = {
      "dtype": _name_of(leaf.dtype),
      "shape": list(leaf.shape),
      "data_offsets": [offset, end],
    }
    offset = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with open(file, "wb") as out:
    out.write(len(text).to_bytes(8, "little") + text)
    for leaf, array in zip(leaves.values(), arrays):
      flat = np.ascontiguousarray(array, leaf.dtype).reshape(-1)
      out.write(flat.view(np.uint8))
    out.flush()
    os.fsync(out.fileno())


def _name_of(dtype: np.dtype) -> str:
  return next(name for name, known in FLOATS.items() if known == dtype)


def _promised(folder: Path) -> tuple[dict[str, set[str]], list[str]]:
  """File -> names the index puts there, and unfinished downloads."""
  problems = [
    f"{path.name} is an unfinished download"
    for place in (folder, folder / ".cache" / "huggingface" / "download")
    for pattern in _UNFINISHED
    for path in sorted(place.glob(pattern))
  ]
  promised = {}
  if (folder / INDEX).is_file():
    for name, file in _read_index(folder / INDEX).items():
      promised.setdefault(file, set()).add(name)
  elif (folder / SINGLE).is_file():
    promised[SINGLE] = set()
  else:
    raise InputError(_nothing(folder, problems))
  if (folder / VALUE_HEAD).is_file():
    promised.setdefault(VALUE_HEAD, set())
  return promised, problems


def _nothing(folder: Path, problems: list[str]) -> str:
  """Why a folder without index and without a single file is no checkpoint."""
  if not folder.is_dir():
    return f"the checkpoint {folder} is no folder; name one that exists"
  if problems:
    return (
      f"the checkpoint {folder} is half-downloaded: {'; '.join(problems)}; "
      "download it again"
    )
  if any(folder.glob("*.safetensors")):
    return f"the checkpoint {folder} lacks {INDEX}; download it again"
  pickles = sorted(p.name for kind in _PICKLES for p in folder.glob(kind))
  if pickles:
    return (
      f"the checkpoint {folder} holds only pickled weights ({pickles[0]}), "
      "which may run any code when read; convert them to safetensors"
    )
  return f"the checkpoint {folder} holds no {SINGLE}; name another folder"


def _read_index(file: Path) -> dict[str, str]:
  """Tensor name -> file name."""
  try:
    names = json.loads(file.read_bytes())["weight_map"]
    # A name with a folder in it could lead anywhere.
    whole = all(Path(f).name == f for f in names.values())
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
    whole = False
  if not whole:
    raise InputError(
      f"{file} is no index of safetensors files beside it; download it again"
    )
  return names


class _Unreadable(Exception):
  """Says what is wrong with a file; its name goes in front."""


def _read_header(file: Path) -> dict[str, Tensor]:
  """Tensors by name. Offsets are from the start of the file."""
  if not file.is_file():
    raise _Unreadable("is absent")
  size = file.stat().st_size
  with open(file, "rb") as stream:
    first = stream.read(8)
    if (first + stream.read(16)).startswith(_POINTER):
      raise _Unreadable("is a Git LFS pointer and not the file itself")
    stream.seek(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > size - 8:
      raise _Unreadable(f"is truncated inside its header, at {size} bytes")
    if length > _LONGEST_HEADER:
      raise _Unreadable(f"has a header of {length} bytes, which is too long")
    text = stream.read(length)
  try:
    header = json.loads(text)
    header.pop("__metadata__", None)
    return {n: _tensor(file, 8 + length, x) for n, x in header.items()}
  except (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
  ) as error:
    raise _Unreadable("has a header that is not safetensors") from error


def _tensor(file: Path, data: int, fields: Mapping[str, Any]) -> Tensor:
  """One tensor of a header, refused with ValueError if it contradicts itself.

  Args:
    file: the file.
    data: where the tensors of the file start.
    fields: dtype, shape and data_offsets, unchecked.
  """
  dtype, shape = fields["dtype"], fields["shape"]
  start, end = fields["data_offsets"]
  sizes = (*shape, start, end, end - start)
  if not all(type(n) is int and n >= 0 for n in sizes):
    raise ValueError("sizes are whole numbers")
  known = FLOATS.get(dtype)
  if known and end - start != math.prod(shape) * known.itemsize:
    raise ValueError("a tensor's bytes do not fit its shape")
  return Tensor(file, data + start, end - start, str(dtype), tuple(shape))


def _missing_bytes(file: Path, header: Mapping[str, Tensor]) -> int:
  """How much longer the file would have to be for its tensors."""
  end = max((t.offset + t.nbytes for t in header.values()), default=0)
  return max(0, end - file.stat().st_size)
