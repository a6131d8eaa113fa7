"""Headers of good, damaged and hostile files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxrl_mm.errors import InputError
from jaxrl_mm.models.huggingface import safetensors

ONE, TWO = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


def _shards(folder):
  """Two shards with an index."""
  save_file({"a": np.ones((2, 3), np.float32)}, folder / ONE)
  save_file({"b": np.zeros(4, jnp.bfloat16)}, folder / TWO)
  index = {"metadata": {}, "weight_map": {"a": ONE, "b": TWO}}
  (folder / safetensors.INDEX).write_text(json.dumps(index))


def _raw(folder, header, data=b""):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  raw = len(text).to_bytes(8, "little") + text + data
  (folder / safetensors.SINGLE).write_bytes(raw)
  return safetensors.scan(folder)


def test_views_equal_what_the_reference_wrote(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    "one": rng.standard_normal((3, 4), np.float32),
    "half": rng.standard_normal((5, 2), np.float32).astype(jnp.bfloat16),
    "small": rng.standard_normal(7).astype(np.float16),
    "wide": np.array(2.5),
  }
  file = tmp_path / safetensors.SINGLE
  save_file(arrays | {"ids": np.arange(3)}, file, {"format": "pt"})
  files = safetensors.scan(tmp_path)
  assert files.problems == () and files.lost == frozenset()
  assert files.tensors.keys() == arrays.keys() | {"ids"}
  assert files.tensors["ids"].dtype == "I64"
  for name, array in arrays.items():
    found = safetensors.view(files.tensors[name])
    assert found.dtype == array.dtype and found.shape == array.shape
    assert found.tobytes() == array.tobytes()


def test_the_reference_reads_what_is_written(tmp_path):
  arrays = {"x": np.eye(3), "y": np.arange(5.0), "z": np.array(1.0)}
  for dtype in ("float32", "bfloat16", "float16"):
    file, kind = tmp_path / dtype, jnp.dtype(dtype)
    leaves = {n: jax.ShapeDtypeStruct(x.shape, kind) for n, x in arrays.items()}
    safetensors.write(file, leaves, iter(arrays.values()))
    found = load_file(file)
    assert list(found) == list(arrays)
    for name, x in arrays.items():
      assert found[name].dtype == kind and (found[name] == x).all()


def test_an_index_and_a_value_head_beside_it(tmp_path):
  _shards(tmp_path)
  save_file({"v": np.ones(1)}, tmp_path / safetensors.VALUE_HEAD)
  save_file({"w": np.ones(1)}, tmp_path / "other.safetensors")
  files = safetensors.scan(tmp_path)
  assert {n: t.file.name for n, t in files.tensors.items()} == {
    "a": ONE,
    "b": TWO,
    "v": safetensors.VALUE_HEAD,
  }


def test_half_downloaded_files_are_all_named(tmp_path):
  _shards(tmp_path)
  (tmp_path / TWO).unlink()
  (tmp_path / (TWO + ".incomplete")).touch()
  cache = tmp_path / ".cache" / "huggingface" / "download"
  cache.mkdir(parents=True)
  (cache / "abc.incomplete").touch()
  raw = (tmp_path / ONE).read_bytes()
  (tmp_path / ONE).write_bytes(raw[:-5])
  files = safetensors.scan(tmp_path)
  assert files.problems == (
    f"{TWO}.incomplete is an unfinished download",
    "abc.incomplete is an unfinished download",
    f"{ONE} is truncated, 5 bytes are missing",
    f"{TWO} is absent",
  )
  assert files.lost == {"b"}


def test_a_pointer_is_not_the_file(tmp_path):
  pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"
  (tmp_path / safetensors.SINGLE).write_bytes(pointer)
  (problem,) = safetensors.scan(tmp_path).problems
  assert (
    problem == "model.safetensors is a Git LFS pointer and not the file itself"
  )


def test_headers_longer_than_the_file_or_the_format(tmp_path):
  file = tmp_path / safetensors.SINGLE
  for raw in (b"", b"1234567", (100).to_bytes(8, "little") + b"{}"):
    file.write_bytes(raw)
    (problem,) = safetensors.scan(tmp_path).problems
    assert "truncated inside its header" in problem
  with open(file, "wb") as out:
    out.write((100_000_001).to_bytes(8, "little"))
    out.truncate(200_000_000)
  (problem,) = safetensors.scan(tmp_path).problems
  assert "header of 100000001 bytes, which is too long" in problem


def _fields(dtype="F32", shape=(2,), offsets=(0, 8)):
  return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
  "header",
  [
    b"{",
    b"[1]",
    b"\xff\xfe",
    b"[" * 100_000,
    {"x": 3},
    {"x": {"dtype": "F32"}},
    _fields(dtype=["F32"]),
    _fields(shape=[3]),
    _fields(shape=[-2]),
    _fields(shape=[True, 2]),
    _fields(shape=[2.0]),
    _fields(shape="2"),
    _fields(shape=[2**70, 2**70]),
    _fields(offsets=[8, 0]),
    _fields(offsets=[-8, 0]),
    _fields(offsets=[0, 8, 9]),
    _fields(offsets=[0, 12]),
  ],
)
def test_headers_that_lie_are_refused(tmp_path, header):
  files = _raw(tmp_path, header, b"12345678")
  assert files.tensors == {}
  assert files.problems == (
    "model.safetensors has a header that is not safetensors",
  )


def test_offsets_beyond_the_file_are_truncation(tmp_path):
  files = _raw(tmp_path, _fields(offsets=[2**60, 2**60 + 8]))
  assert "truncated" in files.problems[0]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(tmp_path_factory, raw):
  folder = tmp_path_factory.getbasetemp() / "fuzz"
  folder.mkdir(exist_ok=True)
  for text in (raw, len(raw).to_bytes(8, "little") + raw):
    (folder / safetensors.SINGLE).write_bytes(text)
    assert safetensors.scan(folder).problems or text.endswith(b"}")


def test_a_name_in_two_files_is_named(tmp_path):
  _shards(tmp_path)
  save_file({"a": np.ones(1)}, tmp_path / TWO)
  (problem,) = safetensors.scan(tmp_path).problems
  assert problem == f"'a' lies in two files, one is {TWO}"


@pytest.mark.parametrize(
  "index",
  [
    "{",
    "[]",
    '{"weight_map": 3}',
    '{"weight_map": {"a": 3}}',
    '{"weight_map": {"a": "../a.safetensors"}}',
  ],
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, index):
  (tmp_path / safetensors.INDEX).write_text(index)
  with pytest.raises(InputError, match="no index of safetensors files"):
    safetensors.scan(tmp_path)


def test_folders_without_safetensors_say_why(tmp_path):
  with pytest.raises(InputError, match="gone is no folder"):
    safetensors.scan(tmp_path / "gone")
  with pytest.raises(InputError, match="holds no model.safetensors"):
    safetensors.scan(tmp_path)
  (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
  with pytest.raises(InputError, match="pytorch_model.bin.*convert them"):
    safetensors.scan(tmp_path)
  (tmp_path / ONE).touch()
  with pytest.raises(InputError, match="lacks model.safetensors.index.json"):
    safetensors.scan(tmp_path)
  (tmp_path / "model.safetensors.part").touch()
  with pytest.raises(InputError, match="half-downloaded.*safetensors.part"):
    safetensors.scan(tmp_path)
