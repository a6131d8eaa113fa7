import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxrl_mm import pytree, sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import config, vlm
from jaxrl_mm.models.param_axes import PARAM_AXES, param_shardings


def _shapes(c):
  return jax.eval_shape(lambda key: vlm.init(c, key), jax.random.key(0))


@pytest.fixture(scope="module")
def large():
  return _shapes(config.r1v2_38b())


def test_r1v2_has_the_weights_of_the_published_checkpoint(large):
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert count(large["vision"]) == 5_536_496_000
  assert count(large["projector"]) == 91_786_240
  assert count([large["embedder"], large["decoder"]]) == 32_763_876_352
  assert count(large) == 38_392_158_592


def test_internvl3_1b_has_the_weights_of_the_published_checkpoint():
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  small = _shapes(config.internvl3_1b())
  assert count(small["vision"]) == 304_012_288
  assert count(small) == 938_193_024


def test_smollm2_has_the_weights_of_the_published_checkpoint():
  sizes = [x.size for x in jax.tree.leaves(_shapes(config.smollm2_135m()))]
  assert sum(sizes) == 134_515_008


@pytest.mark.parametrize(
  "size, vision, total",
  [
    (config.qwen2_5_vl_3b, 668_684_288, 3_754_622_976),
    (config.qwen2_5_vl_7b, 676_550_144, 8_292_166_656),
    (config.qwen2_5_vl_32b, 688_841_984, 33_452_718_336),
    (config.qwen2_5_vl_72b, 704_573_696, 73_410_777_344),
  ],
)
def test_qwen_has_the_weights_of_the_published_checkpoints(size, vision, total):
  shapes = _shapes(size())
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert count([shapes["vision"], shapes["projector"]]) == vision
  assert count(shapes) == total


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (1, 4, 2)])
def test_every_weight_of_qwen_has_a_place(sizes):
  scored = dataclasses.replace(config.qwen2_5_vl_7b(), value_head=True)
  shapes = _shapes(scored)
  placed = param_shardings(sharding.make_mesh(*sizes), shapes)
  jax.tree.map(lambda s, x: s.shard_shape(x.shape), placed, shapes)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (1, 1, 8)])
def test_every_weight_of_r1v2_has_a_place(large, sizes):
  mesh = sharding.make_mesh(*sizes)
  placed = dict(pytree.named_leaves(param_shardings(mesh, large)))
  shapes = dict(pytree.named_leaves(large))
  assert placed.keys() == shapes.keys()
  for name, shape in shapes.items():
    assert len(placed[name].spec) == shape.ndim, name
    placed[name].shard_shape(shape.shape)


def test_fsdp_and_tensor_cut_all_that_is_large(large):
  mesh = sharding.make_mesh(1, 4, 2)
  placed = dict(pytree.named_leaves(param_shardings(mesh, large)))
  held = {
    name: np.prod(placed[name].shard_shape(shape.shape)) / shape.size
    for name, shape in pytree.named_leaves(large)
    if shape.size > 1e9
  }
  vision = ("vision/layers/attention/qkv/kernel",)
  assert len(held) == 8
  for name, share in held.items():
    assert share == (1 / 4 if name in vision else 1 / 8), name


def test_the_demo_is_placed_by_the_same_table():
  mesh = sharding.make_mesh(2, 2, 2)
  placed = param_shardings(mesh, _shapes(config.digits()))
  assert placed["embedder"]["table"].spec == P("tensor", ("fsdp", "sequence"))
  attention = placed["decoder"]["layers"]["attention"]
  assert attention["k"]["bias"].spec == P(None, "tensor", None)
  assert placed["decoder"]["norm"]["scale"].spec == P(None)


def test_every_pattern_is_the_first_for_some_weight(large):
  scored = dataclasses.replace(config.qwen2_5_vl_7b(), value_head=True)
  trees = (large, _shapes(config.internvl3_1b()), _shapes(scored))
  names = [name for tree in trees for name, _ in pytree.named_leaves(tree)]
  first = lambda name: next(
    pattern for pattern, _ in PARAM_AXES if pytree.matches(pattern, name)
  )
  assert {first(name) for name in names} == {p for p, _ in PARAM_AXES}


def test_heads_the_mesh_does_not_divide_are_named():
  mesh = sharding.make_mesh(1, 1, 8)
  with pytest.raises(
    InputError, match="'kv_heads' of decoder/layers/attention"
  ):
    param_shardings(mesh, _shapes(config.digits()))
