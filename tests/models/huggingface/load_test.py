"""Trees filled from files that the reference package wrote."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from jaxrl_mm import pytree, sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import config, vlm
from jaxrl_mm.models.huggingface import families, load, safetensors
from jaxrl_mm.models.huggingface.tables import Entry, layouts
from jaxrl_mm.models.param_axes import param_shardings

ENTRIES = (
  Entry("layers/q", "m.{l}.q.weight", "l d h e = (h e) d"),
  Entry("layers/qkv", "m.{l}.{c:a|b|c}.weight", "l d c f = f d"),
  Entry("layers/scale", "m.{l}.norm.weight", "l d = d"),
  Entry("table", "embed.weight", "v d = v d"),
)
SHAPES = {"layers/q": (2, 4, 2, 6), "layers/qkv": (2, 4, 3, 8)} | {
  "layers/scale": (2, 4),
  "table": (10, 4),
}
SPECS = {
  "layers/q": P(None, "fsdp", "tensor"),
  "layers/qkv": P("data", "fsdp", None, "tensor"),
  "layers/scale": P(),
  "table": P("tensor", "fsdp"),
}


def _tree(values):
  layers = {n.split("/")[1]: x for n, x in values.items() if "/" in n}
  return {"layers": layers, "table": values["table"]}


def _shapes(dtype="float32"):
  leaf = lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
  return _tree({name: leaf(shape) for name, shape in SHAPES.items()})


def _shardings(mesh):
  return _tree({name: NamedSharding(mesh, s) for name, s in SPECS.items()})


def _tensors(dtype):
  """Random tensors, as a published checkpoint names and turns them."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape, np.float32).astype(dtype)
  tensors = {"embed.weight": draw(10, 4)}
  for l in range(2):
    tensors[f"m.{l}.q.weight"] = draw(12, 4)
    tensors[f"m.{l}.norm.weight"] = draw(4)
    tensors |= {f"m.{l}.{c}.weight": draw(8, 4) for c in "abc"}
  return tensors


def _by_hand(t):
  """What `_tensors` are in our order."""
  q = [t[f"m.{l}.q.weight"].reshape(2, 6, 4) for l in range(2)]
  qkv = [[t[f"m.{l}.{c}.weight"].T for c in "abc"] for l in range(2)]
  return _tree(
    {
      "layers/q": np.stack([x.transpose(2, 0, 1) for x in q]),
      "layers/qkv": np.stack([np.stack(x, axis=1) for x in qkv]),
      "layers/scale": np.stack([t[f"m.{l}.norm.weight"] for l in range(2)]),
      "table": t["embed.weight"],
    }
  )


def _write(folder, tensors):
  save_file(tensors, folder / safetensors.SINGLE)
  return safetensors.scan(folder)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_sharded_trees_equal_transposes_by_hand(
  tmp_path, stored, wanted, sizes
):
  if sizes == (8, 1, 1):
    specs = dict.fromkeys(SPECS, P())
  else:
    specs = SPECS
  mesh = sharding.make_mesh(*sizes)
  shardings = _tree({n: NamedSharding(mesh, s) for n, s in specs.items()})
  tensors = _tensors(stored)
  files = _write(tmp_path, tensors)
  tree = load.load_tree(files, ENTRIES, _shapes(wanted), shardings)
  want = dict(pytree.named_leaves(_by_hand(tensors)))
  placed = dict(pytree.named_leaves(shardings))
  for name, leaf in pytree.named_leaves(tree):
    assert leaf.dtype == wanted and leaf.sharding == placed[name]
    expected = want[name].astype(wanted)
    assert np.asarray(leaf).tobytes() == expected.tobytes(), name


def test_only_the_tensors_of_a_slice_are_mapped(tmp_path, monkeypatch):
  tensors = _tensors("float32")
  files = _write(tmp_path, tensors)
  by_name = layouts(ENTRIES, _shapes())
  mapped, real = [], safetensors.view
  names = {tensor: name for name, tensor in files.tensors.items()}
  spy = lambda tensor: mapped.append(names[tensor]) or real(tensor)
  monkeypatch.setattr(safetensors, "view", spy)
  bounds = ((1, 2), (0, 3), (1, 3), (2, 8))
  how = by_name["layers/qkv"]
  part = load.read_slice(files, how, bounds, np.dtype(np.float32))
  whole = _by_hand(tensors)["layers"]["qkv"]
  np.testing.assert_array_equal(part, whole[1:2, 0:3, 1:3, 2:8])
  assert mapped == ["m.1.b.weight", "m.1.c.weight"]


def test_what_many_devices_hold_is_read_once(tmp_path, monkeypatch):
  files = _write(tmp_path, _tensors("float32"))
  count, real = [], safetensors.view
  spy = lambda tensor: count.append(tensor) or real(tensor)
  monkeypatch.setattr(safetensors, "view", spy)
  mesh = sharding.make_mesh(2, 2, 2)
  whole = jax.tree.map(lambda s: NamedSharding(s.mesh, P()), _shardings(mesh))
  load.load_tree(files, ENTRIES, _shapes(), whole)
  assert len(count) == len(set(count)) == len(files.tensors)
  count.clear()
  # Four slices of each of q's tensors and of the table; qkv's layers are apart.
  load.load_tree(files, ENTRIES, _shapes(), _shardings(mesh))
  assert len(count) == 2 * 4 + 6 * 4 + 2 + 4


def _complaint(folder, tensors, unused=(), **damage):
  files = _write(folder, tensors)._replace(**damage)
  with pytest.raises(InputError) as caught:
    load.load_tree(
      files, ENTRIES, _shapes(), _shardings(sharding.make_mesh(2, 2, 2)), unused
    )
  return str(caught.value)


def test_all_misfits_are_in_one_message_before_any_read(tmp_path, monkeypatch):
  monkeypatch.setattr(safetensors, "view", None)
  tensors = _tensors("float32")
  del tensors["m.1.a.weight"]
  tensors["m.0.q.weight"] = np.zeros((12, 5), np.float32)
  tensors["m.0.norm.weight"] = np.zeros(4, np.int8)
  tensors["more.bias"] = tensors["rotary.inv_freq"] = np.zeros(3, np.float32)
  assert _complaint(tmp_path, tensors, [r".*inv_freq"]) == (
    f"the checkpoint {tmp_path} does not fit (4 problems: "
    "'m.0.norm.weight' has dtype I8, which is none of F64, F32, F16, BF16; "
    "'m.0.q.weight' has shape (12, 5) and should have (12, 4); "
    "'m.1.a.weight' is missing; 'more.bias' is not part of the model); name "
    "another one"
  )


def test_a_message_lists_a_dozen_and_counts_the_rest(tmp_path):
  message = _complaint(tmp_path, {f"x{i:02}": np.zeros(1) for i in range(20)})
  missing = len(_tensors("float32"))
  assert f"({missing + 20} problems: " in message
  assert message.count(";") == 13
  assert f"; and {missing + 8} more)" in message


def test_damaged_files_say_so_and_hide_no_misfit(tmp_path):
  tensors = _tensors("float32")
  del tensors["embed.weight"], tensors["m.0.q.weight"]
  message = _complaint(
    tmp_path,
    tensors,
    problems=("model-2.safetensors is absent",),
    lost=frozenset({"m.0.q.weight"}),
  )
  assert message == (
    f"the checkpoint {tmp_path} is half-downloaded or damaged (2 problems: "
    "model-2.safetensors is absent; 'embed.weight' is missing); download it "
    "again"
  )


def test_a_truncated_file_is_never_mapped(tmp_path, monkeypatch):
  monkeypatch.setattr(safetensors, "view", None)
  _write(tmp_path, _tensors("float32"))
  file = tmp_path / safetensors.SINGLE
  file.write_bytes(file.read_bytes()[:-4])
  shardings = _shardings(sharding.make_mesh(2, 2, 2))
  with pytest.raises(InputError, match="truncated, 4 bytes are missing"):
    load.load_tree(safetensors.scan(tmp_path), ENTRIES, _shapes(), shardings)


# ------------------------------------------------------------ load_params
def _text_table(c, names):
  """Every leaf under its own path, layers apart, nothing turned."""
  shapes = jax.eval_shape(lambda k: vlm.init(c, k), jax.random.key(0))
  lines = []
  for name, leaf in pytree.named_leaves(shapes):
    letters = "abcdef"[: leaf.ndim]
    if "layers/" in name:
      axes = f"l {' '.join(letters[1:])} = {' '.join(letters[1:])}"
      lines.append(Entry(name, name.replace("layers", "layers.{l}"), axes))
    else:
      axes = " ".join(letters)
      lines.append(Entry(name, name, f"{axes} = {axes}"))
  assert names
  return tuple(lines)


@pytest.fixture
def text_only(tmp_path, monkeypatch):
  """A model of text alone in a folder: its config, its folder, its weights."""
  family = types.ModuleType("mine")
  family.table, family.UNUSED = _text_table, ()
  monkeypatch.setitem(families.FAMILIES, "mine", family)
  c = config.ModelConfig(
    None,
    config.DecoderConfig(2, 8, 2, 2, 4, 16, 32, tied=True),
    dtype="float32",
    param_dtype="bfloat16",
  )
  shapes = jax.eval_shape(lambda k: vlm.init(c, k), jax.random.key(0))
  by_name = layouts(_text_table(c, ["x"]), shapes)
  rng = np.random.default_rng(0)
  tensors = {
    name: rng.standard_normal(how.shape).astype(jnp.bfloat16)
    for how in by_name.values()
    for name in how.names.values()
  }
  save_file(tensors, tmp_path / safetensors.SINGLE)
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine"}))
  return c, tmp_path, tensors


def test_params_of_a_model_have_its_layout(text_only):
  c, folder, tensors = text_only
  mesh = sharding.make_mesh(2, 2, 2)
  params = load.load_params(folder, c, mesh)
  shapes = jax.eval_shape(lambda k: vlm.init(c, k), jax.random.key(0))
  assert jax.tree.structure(params) == jax.tree.structure(shapes)
  same = jax.tree.map(
    lambda x, s: x.sharding == s, params, param_shardings(mesh, shapes)
  )
  assert all(jax.tree.leaves(same))
  gate = np.stack([tensors[f"decoder/layers.{l}/gate/kernel"] for l in (0, 1)])
  np.testing.assert_array_equal(
    params["decoder"]["layers"]["gate"]["kernel"], gate
  )


def test_tied_weights_may_be_stored_twice(text_only):
  c, folder, tensors = text_only
  more = tensors | {"lm_head.weight": tensors["embedder/table"]}
  save_file(more, folder / safetensors.SINGLE)
  mesh = sharding.make_mesh()
  assert "head" not in load.load_params(folder, c, mesh)["embedder"]
  save_file(more | {"x_lm_head.bias": np.ones(1)}, folder / safetensors.SINGLE)
  with pytest.raises(InputError, match="'x_lm_head.bias' is not part"):
    load.load_params(folder, c, mesh)
