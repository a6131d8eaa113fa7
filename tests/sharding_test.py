import contextlib
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxrl_mm import sharding
from jaxrl_mm.errors import InputError


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(2, 2, 2)


def test_spec_looks_each_axis_up():
  embed = ("fsdp", "sequence")
  assert sharding.RULES.spec("vocab", "embed") == P("tensor", embed)
  assert sharding.RULES.spec("layer", None, "mlp") == P(None, None, "tensor")
  assert sharding.RULES.spec("batch") == P(("data", "fsdp"))


def test_an_unknown_axis_is_an_attribute_error():
  with pytest.raises(AttributeError, match="embd"):
    sharding.RULES.spec("embd")


@pytest.mark.parametrize(
  "axes", [("heads", "mlp"), ("batch", "embed"), ("length", "embed")]
)
def test_a_mesh_axis_used_twice_is_an_error(axes):
  with pytest.raises(ValueError, match="a mesh axis is used twice"):
    sharding.RULES.spec(*axes)


def test_make_mesh_fills_the_axis_that_is_left(mesh):
  sizes = {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
  assert dict(mesh.shape) == sizes
  assert dict(sharding.make_mesh().shape)["data"] == 8
  free = sharding.make_mesh(data=2, fsdp=-1, tensor=2)
  assert dict(free.shape) == sizes
  long = sharding.make_mesh(2, 1, 1, sequence=-1)
  assert dict(long.shape)["sequence"] == 4
  some = sharding.make_mesh(devices=jax.devices()[:4])
  assert some.size == 4


@pytest.mark.parametrize(
  "sizes, asked",
  [
    ((3, 1, 1), "data 3 x fsdp 1 x sequence 1 x tensor 1"),
    ((-1, 3, 1), "data -1 x fsdp 3 x sequence 1 x tensor 1"),
    ((-1, 16, 1), "data -1 x fsdp 16 x sequence 1 x tensor 1"),
    ((-1, -1, 1), "data -1 x fsdp -1 x sequence 1 x tensor 1"),
    ((-1, 0, 1), "data -1 x fsdp 0 x sequence 1 x tensor 1"),
    ((-2, -4, 1), "data -2 x fsdp -4 x sequence 1 x tensor 1"),
  ],
)
def test_a_mesh_that_does_not_fit_says_what_was_asked(sizes, asked):
  with pytest.raises(InputError) as error:
    sharding.make_mesh(*sizes)
  assert f"asks for {asked} devices and there are 8" in str(error.value)


def test_without_a_mesh_everything_is_the_identity():
  x = jnp.arange(4.0)
  assert sharding.constrain(x, "batch") is x
  assert sharding.constrain_rows({"x": x})["x"] is x
  assert sharding.batch_shards() == 1


def test_constrain_lays_out_by_logical_axes(mesh):
  x = jnp.arange(32.0).reshape(4, 8)
  with jax.set_mesh(mesh):
    assert sharding.batch_shards() == 4
    y = jax.jit(lambda x: sharding.constrain(x, "batch", "mlp"))(x)
    rows = jax.jit(sharding.constrain_rows)({"x": x, "y": x[:, 0]})
  assert y.sharding.is_equivalent_to(
    jax.NamedSharding(mesh, P(("data", "fsdp"), "tensor")), 2
  )
  np.testing.assert_array_equal(y, x)
  assert {k: v.addressable_shards[0].data.shape for k, v in rows.items()} == {
    "x": (1, 8),
    "y": (1,),
  }


def test_tokens_are_cut_over_the_sequence_axis_where_it_divides_them():
  mesh = sharding.make_mesh(2, 1, 1, sequence=4)
  cut = jax.jit(lambda x: sharding.constrain(x, "batch", "length"))
  with jax.set_mesh(mesh):
    parts = [cut(jnp.zeros((4, length))) for length in (8, 6, 1)]
  held = [x.addressable_shards[0].data.shape for x in parts]
  assert held == [(2, 2), (2, 6), (2, 1)]


@pytest.mark.parametrize("size", [16, 10])  # ten rows lie as they come
@pytest.mark.parametrize(
  "sizes, at_a_time",
  [(None, 1), *(((2, 2, 2), at_a_time) for at_a_time in (1, 2, 4, 100))],
)
def test_rows_of_any_shard_are_read_and_written(
  sizes, at_a_time, size, monkeypatch
):
  row_bytes = 3 * 4 + 4 + 1
  monkeypatch.setattr(sharding, "MOVED_BYTES", at_a_time * 4 * row_bytes)
  rng = np.random.default_rng(0)
  held = {
    "x": rng.standard_normal((size, 3)).astype(np.float32),
    "y": rng.integers(0, 256, (size, 2, 2)).astype(np.uint8),
    "z": rng.random(size) < 0.5,
  }
  held["x"][:2] = [[-0.0, np.nan, np.inf], [-np.inf, 0.0, -0.0]]
  # Six for each of four shards: six, three, two and one round of them.
  read, other = rng.integers(0, size, (2, 24))
  new = jax.tree.map(lambda x: x[other], held)
  put = rng.permutation(26)[:24]  # some beyond the last row
  mesh = sharding.make_mesh(*sizes) if sizes else None
  with jax.set_mesh(mesh) if sizes else contextlib.nullcontext():
    got = jax.jit(sharding.gather_rows)(held, read)
    changed = jax.jit(sharding.scatter_rows)(held, put, new)
  for name, x in held.items():
    bits = lambda x: np.asarray(x).tobytes()
    assert bits(got[name]) == bits(x[read])
    expected = x.copy()
    expected[put[put < size]] = new[name][put < size]
    assert bits(changed[name]) == bits(expected)


def test_rows_lie_on_the_axes_that_the_mesh_has():
  """A mesh of another project, and one that a `shard_map` has taken."""
  x, index = jnp.arange(16.0), jnp.arange(16)[::-1]
  mesh = jax.make_mesh((4, 2), ("data", "x"), axis_types=(AxisType.Auto,) * 2)
  inside = jax.shard_map(
    sharding.gather_rows, mesh=mesh, in_specs=(P(), P()), out_specs=P()
  )
  with jax.set_mesh(mesh):
    for gather in (sharding.gather_rows, inside):
      np.testing.assert_array_equal(jax.jit(gather)(x, index), x[::-1])


# ---------------------------------------------------------------- by_table
TABLE = [("a/kernel", ("embed", "mlp")), (".*/bias", (None,))]


def test_by_table_places_each_weight(mesh):
  placed = sharding.by_table(
    mesh,
    {"a": {"kernel": jnp.zeros((4, 6)), "bias": jnp.zeros(3)}},
    TABLE,
  )
  assert placed["a"]["kernel"].spec == P(("fsdp", "sequence"), "tensor")
  assert placed["a"]["bias"].spec == P(None)


def test_by_table_takes_other_rules(mesh):
  rules = dataclasses.replace(sharding.RULES, embed=None, mlp="data")
  placed = sharding.by_table(
    mesh, {"a": {"kernel": jnp.zeros((3, 6))}}, TABLE, rules
  )
  assert placed["a"]["kernel"].spec == P(None, "data")


def test_an_unmatched_weight_is_an_error(mesh):
  with pytest.raises(KeyError, match="b/kernel"):
    sharding.by_table(mesh, {"b": {"kernel": jnp.zeros(2)}}, TABLE)


def test_devices_along_sequence_share_the_weights_too():
  mesh = sharding.make_mesh(1, 2, 1, sequence=4)
  tree = {"a": {"kernel": jnp.zeros((16, 6))}}
  kernel = sharding.by_table(mesh, tree, TABLE)["a"]["kernel"]
  assert kernel.shard_shape((16, 6)) == (2, 6)


def test_a_wrong_rank_is_an_error(mesh):
  with pytest.raises(ValueError, match=r"a/kernel: .* for the shape \(4,\)"):
    sharding.by_table(mesh, {"a": {"kernel": jnp.zeros(4)}}, TABLE)


def test_a_size_the_mesh_does_not_divide_is_an_error_that_does_the_sum(mesh):
  with pytest.raises(InputError) as error:
    sharding.by_table(mesh, {"a": {"kernel": jnp.zeros((4, 7))}}, TABLE)
  assert str(error.value) == (
    "the axis 'mlp' of a/kernel has size 7, which the 2 devices of mesh axis "
    "'tensor' do not divide; change config.mesh"
  )


def test_an_axis_over_two_mesh_axes_must_divide_by_their_product(mesh):
  tree = {"x": jnp.zeros(6)}
  message = "which the 4 devices of mesh axis 'data x fsdp'"
  with pytest.raises(InputError, match=message):
    sharding.by_table(mesh, tree, [("x", ("batch",))])


# ------------------------------------------------------------ host, device
def test_rows_go_to_the_device_and_back(mesh):
  tree = {
    "x": np.arange(24).reshape(8, 3),
    "y": np.linspace(0, 1, 8, dtype=np.float32),
  }
  there = sharding.to_device(tree, mesh)
  for leaf in jax.tree.leaves(there):
    assert leaf.sharding == sharding.rows(mesh)
    assert leaf.addressable_shards[0].data.shape[0] == 2
  back = sharding.to_host(there)
  for name, x in tree.items():
    assert isinstance(back[name], np.ndarray)
    np.testing.assert_array_equal(back[name], x)


def test_replicated_puts_the_whole_on_every_device(mesh):
  x = jax.device_put(jnp.arange(3), sharding.replicated(mesh))
  assert [s.data.shape for s in x.addressable_shards] == [(3,)] * 8


def test_one_process_sums_its_own_number_alone():
  assert sharding.sum_over_processes(2.5) == 2.5


def test_one_process_holds_all_rows():
  mesh = sharding.make_mesh(4, 1, 2)
  assert sharding.local_rows(mesh, 8) == list(range(8))
  assert list(sharding.first_held(mesh, 8)) == [True] * 8


def test_the_rows_of_the_devices_of_a_process(monkeypatch):
  """As two processes with four devices each would hold them."""
  of = type(sharding.rows(sharding.make_mesh()))
  everywhere = of.devices_indices_map

  def half(layout, shape):
    places = everywhere(layout, shape)
    return {d: cut for d, cut in places.items() if d.id in (2, 3, 6, 7)}

  monkeypatch.setattr(of, "addressable_devices_indices_map", half)
  rows = lambda *sizes: sharding.local_rows(sharding.make_mesh(*sizes), 8)
  assert rows(8) == [2, 3, 6, 7]
  assert rows(4, 1, 2) == [2, 3, 6, 7]
  assert rows(2, 1, 4) == list(range(8))  # both processes read all of them


def test_the_text_of_the_first_process():
  assert sharding.of_first_process("grüße") == "grüße"


class Place(NamedTuple):
  """A device of another machine."""

  id: int
  process_index: int


def test_the_first_holder_of_a_row_decides(monkeypatch):
  """As two processes that hold every other device, the second of them."""
  of = type(sharding.rows(sharding.make_mesh()))
  everywhere = of.devices_indices_map

  def two(layout, shape):
    places = everywhere(layout, shape)
    return {Place(d.id, d.id % 2): cut for d, cut in places.items()}

  second = np.arange(16, dtype=np.float32).reshape(8, 2)
  gather = lambda x: np.stack([x + 100, x])
  monkeypatch.setattr(of, "devices_indices_map", two)
  monkeypatch.setattr(sharding.multihost_utils, "process_allgather", gather)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  first = lambda *sizes: sharding.first_held(sharding.make_mesh(*sizes), 8)
  assert not first(4, 1, 2).any() and list(first(8)) == [True] * 4
  decided = lambda *sizes: sharding.of_first_holder(
    second, sharding.make_mesh(*sizes), 8
  )
  np.testing.assert_array_equal(decided(4, 1, 2), second + 100)
  np.testing.assert_array_equal(decided(8), second)  # each its own
