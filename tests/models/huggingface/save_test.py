"""Written checkpoints, read back by the reference package."""

import json
import os
import resource
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxrl_mm import sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.models.huggingface import load, safetensors, save
from jaxrl_mm.models.huggingface.tables import Entry

pytestmark = pytest.mark.usefixtures("quick_compile")

ENTRIES = (
  Entry("embedder/table", "model.embed.weight", "v d = v d"),
  Entry("q", "model.{l}.q.weight", "l d h e = (h e) d"),
  Entry("qkv", "model.{l}.{c:a|b|c}.weight", "l d c f = f d"),
  Entry("norm", "model.norm.weight", "d = d"),
)
SHAPES = {"q": (2, 4, 2, 6), "qkv": (2, 4, 3, 8), "norm": (4,)}
COPIED = "config.json", "tokenizer.json", "merges.txt", "chat_template.jinja"


def _original(folder, dtype="bfloat16", **more):
  """A checkpoint in two shards, with all that lies beside one."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape, np.float32).astype(dtype)
  tensors = {"model.embed.weight": draw(10, 4), "model.norm.weight": draw(4)}
  for l in range(2):
    tensors[f"model.{l}.q.weight"] = draw(12, 4)
    tensors |= {f"model.{l}.{c}.weight": draw(8, 4) for c in "abc"}
  tensors |= more
  names = sorted(tensors)
  weight_map = {}
  for i in (0, 1):
    file = f"model-0000{i + 1}-of-00002.safetensors"
    save_file({n: tensors[n] for n in names[i::2]}, folder / file)
    weight_map |= dict.fromkeys(names[i::2], file)
  index = json.dumps({"metadata": {}, "weight_map": weight_map})
  (folder / safetensors.INDEX).write_text(index)
  for name in (*COPIED, "modeling_mine.py", "notes.md"):
    (folder / name).write_text(json.dumps(f"of {name}"))
  return tensors


def _params(folder, dtype="bfloat16", unused=()):
  """The checkpoint on eight devices."""
  mesh = sharding.make_mesh(2, 2, 2)
  leaf = lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
  shapes = {name: leaf(shape) for name, shape in SHAPES.items()}
  shapes["embedder"] = {"table": leaf((10, 4))}
  spec = lambda *axes: NamedSharding(mesh, P(*axes))
  shardings = {
    "q": spec(None, "fsdp", "tensor"),
    "qkv": spec("data", None, None, "tensor"),
    "norm": spec(),
    "embedder": {"table": spec("tensor", "fsdp")},
  }
  files = safetensors.scan(folder)
  return load.load_tree(files, ENTRIES, shapes, shardings, unused)


@pytest.fixture
def like(tmp_path):
  folder = tmp_path / "like"
  folder.mkdir()
  return folder


def _contents(folder):
  return {
    name: array
    for file in folder.glob("*.safetensors")
    for name, array in load_file(file).items()
  }


def _same_bits(found, wanted):
  assert found.keys() == wanted.keys()
  for name, array in wanted.items():
    assert found[name].dtype == array.dtype, name
    assert found[name].shape == array.shape, name
    assert found[name].tobytes() == array.tobytes(), name


def _nans(dtype, *shape):
  """NaNs of many kinds, signalling ones too, which arithmetic would alter."""
  pairs = np.random.default_rng(1).integers(128, 256, (1000, 2), np.uint8)
  pairs[:, 1] = 0x7F
  kind, size = jnp.dtype(dtype), np.prod(shape)
  return pairs.reshape(-1)[: size * kind.itemsize].view(kind).reshape(shape)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_in_and_out_keeps_every_bit(tmp_path, like, dtype):
  odd = {"model.embed.weight": (10, 4), "model.1.q.weight": (12, 4)}
  nans = {name: _nans(dtype, *shape) for name, shape in odd.items()}
  tensors = _original(like, dtype, **nans)
  out = tmp_path / "deep" / "out"
  save.save_params(_params(like, dtype), ENTRIES, out, like=like, dtype=dtype)
  _same_bits(_contents(out), tensors)
  with safe_open(out / safetensors.SINGLE, "numpy") as file:
    assert file.metadata() == {"format": "pt"}
  names = {path.name for path in out.iterdir()}
  assert names == {safetensors.SINGLE, *COPIED, "modeling_mine.py"}
  assert (out / "config.json").read_text() == '"of config.json"'
  assert {p.name for p in out.parent.iterdir()} == {"out"}


def test_wide_weights_go_out_as_narrow_ones(tmp_path, like):
  tensors = _original(like, "bfloat16")
  params = _params(like, "float32")
  save.save_params(params, ENTRIES, tmp_path / "out", like=None)
  _same_bits(_contents(tmp_path / "out"), tensors)


def test_shards_are_cut_and_indexed(tmp_path, like):
  tensors = _original(like, "float32")
  out = tmp_path / "out"
  save.save_params(
    _params(like), ENTRIES, out, like=like, shard_bytes=200, dtype="bfloat16"
  )
  index = json.loads((out / safetensors.INDEX).read_text())
  sizes = [sum(x.nbytes for x in load_file(f).values()) for f in _shards(out)]
  assert max(sizes) <= 200 and len(sizes) > 2
  assert index["metadata"] == {"total_size": sum(sizes)}
  assert index["weight_map"].keys() == tensors.keys()
  for name, file in index["weight_map"].items():
    assert name in load_file(out / file)
  n = len(sizes)
  assert [f.name for f in _shards(out)] == [
    f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)
  ]
  assert safetensors.scan(out).problems == ()


def test_each_tensor_may_keep_the_dtype_it_was_read_with(tmp_path, like):
  """A float32 norm among bfloat16 weights; a config that says nothing."""
  norm = np.full(4, 1 + 2**-20, np.float32)
  tensors = _original(like, **{"model.norm.weight": norm})
  out, params = tmp_path / "out", _params(like, "float32")
  save.save_params(params, ENTRIES, out, like=like, dtype=None)
  _same_bits(_contents(out), tensors)
  out = tmp_path / "alone"
  save.save_params(params, ENTRIES, out, like=None, dtype=None)
  assert {x.dtype for x in _contents(out).values()} == {np.dtype("float32")}


def test_config_json_names_the_dtype_of_the_weights(tmp_path, like):
  _original(like)
  fields = {
    "torch_dtype": "bfloat16",
    "rope_scaling": None,
    "llm_config": {"dtype": "bfloat16", "name": "数"},
    "vision_config": {"dtype": None},
  }
  text = json.dumps(fields)
  (like / "config.json").write_text(text)
  for dtype in (None, "bfloat16", "float16"):
    out = tmp_path / str(dtype)
    save.save_params(_params(like), ENTRIES, out, like=like, dtype=dtype)
    found = (out / "config.json").read_text()
    if dtype == "float16":
      assert json.loads(found) == json.loads(text.replace("bfloat", "float"))
    else:
      assert found == text


def _shards(folder):
  return sorted(folder.glob("model-*.safetensors"))


def test_tied_embeddings_are_written_twice_only_if_they_were(tmp_path, like):
  _original(like)
  params = _params(like)
  out = tmp_path / "once"
  save.save_params(params, ENTRIES, out, like=like)
  assert "lm_head.weight" not in _contents(out)
  # A stale copy: what counts are the weights of today.
  _original(like, **{"lm_head.weight": np.zeros((10, 4), jnp.bfloat16)})
  out = tmp_path / "twice"
  save.save_params(params, ENTRIES, out, like=like)
  found = _contents(out)
  head, table = found["lm_head.weight"], found["model.embed.weight"]
  assert head.any() and head.tobytes() == table.tobytes()


def test_a_value_head_gets_its_own_file(tmp_path):
  params = {"head": jnp.arange(4.0)[:, None], "w": jnp.ones((2, 3))}
  entries = [
    Entry("head", "v_head.summary.weight", "d 1 = 1 d"),
    Entry("w", "w", "a b = b a"),
  ]
  save.save_params(params, entries, tmp_path / "o", like=None, dtype="float32")
  (name,) = load_file(tmp_path / "o" / safetensors.SINGLE)
  assert name == "w"
  head = load_file(tmp_path / "o" / safetensors.VALUE_HEAD)
  np.testing.assert_array_equal(
    head["v_head.summary.weight"], np.arange(4.0)[None]
  )


def test_a_full_disk_leaves_nothing(tmp_path, like):
  _original(like)
  params, out = _params(like), tmp_path / "out"
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
  try:
    with pytest.raises(InputError, match="could not be written.*make room"):
      save.save_params(params, ENTRIES, out, like=like)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert [path.name for path in tmp_path.iterdir()] == ["like"]


def test_what_cannot_work_is_refused_first(tmp_path, like, monkeypatch):
  monkeypatch.setattr(save, "_fetch", None)
  params = {"w": jnp.ones((1000, 1000))}
  entries = [Entry("w", "w", "a b = a b")]
  write = lambda folder, **more: save.save_params(
    params, entries, folder, **{"like": None} | more
  )
  (like / "a").touch()
  with pytest.raises(InputError, match="like exists already"):
    write(like)
  with pytest.raises(InputError, match="gone is no folder"):
    write(tmp_path / "out", like=tmp_path / "gone")
  with pytest.raises(InputError, match="int8 is none of .*bfloat16"):
    write(tmp_path / "out", dtype="int8")
  monkeypatch.setattr(save, "_free_bytes", lambda folder: 10**6)
  with pytest.raises(InputError, match="takes 0.002 GB.*0.001 GB left"):
    write(tmp_path / "out")
  assert [path.name for path in tmp_path.iterdir()] == ["like"]


# Arguments: process, port, source folder, target folder.
TWO_PROCESSES = """
import resource, sys
from pathlib import Path
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P

rank, port, like, out = int(sys.argv[1]), *sys.argv[2:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)

from jaxrl_mm import sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.models.huggingface import load, safetensors, save
from jaxrl_mm.models.huggingface.tables import Entry

mapped, view = set(), safetensors.view
names = {t: n for n, t in safetensors.scan(Path(like)).tensors.items()}
safetensors.view = lambda t: mapped.add(names[t]) or view(t)
entries = [
  Entry("w", "model.{l}.q.weight", "l a b = a b"),
  Entry("table", "model.embed.weight", "a b = b a"),
]
mesh = sharding.make_mesh(2)
leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
shapes = {"w": leaf(2, 12, 4), "table": leaf(4, 10)}
place = lambda *axes: NamedSharding(mesh, P(*axes))
places = {"w": place("data"), "table": place()}
files = safetensors.scan(Path(like))
tree = load.load_tree(files, entries, shapes, places, [".*"])
assert mapped == {f"model.{rank}.q.weight", "model.embed.weight"}, mapped
save.save_params(tree, entries, Path(out), like=None)
if rank == 0:
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for target in (out + "2", out):
  try:
    save.save_params(tree, entries, Path(target), like=None, dtype="float64")
  except InputError as error:
    print("said:", error)
"""


def test_two_processes_read_their_own_and_write_one_checkpoint(tmp_path, like):
  tensors = _original(like)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  rest = [str(port), str(like), str(tmp_path / "out")]
  runs = [
    subprocess.Popen(
      [sys.executable, "-c", TWO_PROCESSES, str(rank), *rest],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=os.environ | {"XLA_FLAGS": ""},
    )
    for rank in (0, 1)
  ]
  results = [run.communicate(timeout=120) for run in runs]
  assert [run.returncode for run in runs] == [0, 0], results
  written = ("model.0.q.weight", "model.1.q.weight", "model.embed.weight")
  _same_bits(_contents(tmp_path / "out"), {n: tensors[n] for n in written})
  said = [
    [line for line in out.splitlines() if line.startswith("said:")]
    for out, _ in results
  ]
  full, taken = said[0]
  assert "could not be written (File too large)" in full
  assert "exists already" in taken
  other = "said: process 0 could not write the checkpoint; read its message"
  assert said[1] == [other, other]
  assert {path.name for path in tmp_path.iterdir()} == {"like", "out"}


def test_a_stale_partial_folder_is_replaced(tmp_path):
  stale = tmp_path / "out.partial"
  stale.mkdir()
  (stale / "model-00001-of-00009.safetensors").touch()
  entries = [Entry("w", "w", "a = a")]
  save.save_params({"w": jnp.ones(3)}, entries, tmp_path / "out", like=None)
  assert [p.name for p in (tmp_path / "out").iterdir()] == [safetensors.SINGLE]
  assert not stale.exists()
