"""Saved and restored bits, other layouts, damaged files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import checkpoint, sharding
from jaxrl_mm.errors import InputError


def _state(mesh):
  rows = sharding.rows(mesh)
  return {
    "w": jax.device_put(jnp.arange(16.0).reshape(8, 2) / 3, rows),
    "half": jnp.arange(4, dtype=jnp.bfloat16),
    "key": jax.random.key(7),
    "step": jnp.int32(3),
  }


def _bits(tree):
  raw = tree | {"key": jax.random.key_data(tree["key"])}
  return jax.tree.map(lambda x: np.asarray(x).tobytes(), raw)


def test_the_same_bits_on_the_same_and_on_another_mesh(tmp_path):
  state = _state(sharding.make_mesh(8))
  with checkpoint.Checkpoints(tmp_path / "c") as saved:
    saved.save(3, state, {"next_index": 5})
  for mesh in (sharding.make_mesh(8), sharding.make_mesh(2, 2, 2)):
    with checkpoint.Checkpoints(tmp_path / "c") as saved:
      assert saved.latest_step() == 3
      restored, data = saved.restore(_state(mesh))
    assert data == {"next_index": 5}
    assert _bits(restored) == _bits(state)
    assert restored["w"].sharding == sharding.rows(mesh)


def test_keeps_the_newest(tmp_path):
  state = _state(sharding.make_mesh())
  with checkpoint.Checkpoints(tmp_path / "c", keep=2) as saved:
    for step in (1, 2, 3):
      saved.save(step, state, {})
  kept = sorted(p.name for p in (tmp_path / "c").iterdir() if p.name.isdigit())
  assert kept == ["2", "3"]


def test_a_damaged_checkpoint_is_named(tmp_path):
  state = _state(sharding.make_mesh())
  with checkpoint.Checkpoints(tmp_path / "c") as saved:
    saved.save(3, state, {})
  for path in (tmp_path / "c" / "3" / "state").rglob("*"):
    if path.is_file():
      path.write_bytes(b"no")
  with checkpoint.Checkpoints(tmp_path / "c") as saved:
    with pytest.raises(InputError, match="c/3 cannot be read.*delete"):
      saved.restore(state)


def test_weights_alone_can_be_read_onto_a_mesh(tmp_path):
  weights = {"decoder": {"up": jnp.arange(16.0).reshape(8, 2)}}
  with checkpoint.Checkpoints(tmp_path / "c") as saved:
    saved.save(3, {"params": weights, "opt_state": (jnp.ones(2),)}, {"x": 1})
  rows = sharding.rows(sharding.make_mesh(8))
  wanted = jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=rows)
  with checkpoint.Checkpoints(tmp_path / "c") as saved:
    got = saved.restore_params({"decoder": {"up": wanted}})
  np.testing.assert_array_equal(got["decoder"]["up"], weights["decoder"]["up"])
  assert got["decoder"]["up"].sharding == rows


def test_a_reader_leaves_a_save_in_flight_alone(tmp_path):
  state = _state(sharding.make_mesh())
  with checkpoint.Checkpoints(tmp_path / "c") as saved:
    saved.save(3, state, {})
  begun = tmp_path / "c" / "4.orbax-checkpoint-tmp"
  begun.mkdir()
  with checkpoint.Checkpoints(tmp_path / "c", keep=None) as read:
    assert read.latest_step() == 3
    restored, _ = read.restore(state)
  assert _bits(restored) == _bits(state)
  assert begun.is_dir()
