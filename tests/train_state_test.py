import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxrl_mm import pytree, sharding, train_state
from jaxrl_mm.optimizer import OptimizerConfig, make_optimizer

SHAPES = {
  "norm": jax.ShapeDtypeStruct((4,), jnp.float32),
  "trained": {"kernel": jax.ShapeDtypeStruct((4, 6), jnp.float32)},
}


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(2, 2, 2)


@pytest.fixture(scope="module")
def placed(mesh):
  return sharding.by_table(
    mesh,
    SHAPES,
    [("norm", (None,)), (".*kernel", ("embed", "mlp"))],
  )


def test_moments_lie_where_their_weights_lie(mesh, placed):
  optimizer = make_optimizer(OptimizerConfig(), 9)
  shardings = train_state.optimizer_shardings(
    optimizer, SHAPES, placed, sharding.replicated(mesh)
  )
  state = jax.eval_shape(optimizer.init, SHAPES)
  assert jax.tree.structure(state) == jax.tree.structure(shardings)
  shapes = dict(pytree.named_leaves(state))
  specs = {name: s.spec for name, s in pytree.named_leaves(shardings)}
  cut = P(("fsdp", "sequence"), "tensor")
  moments = [n for n, spec in specs.items() if spec == cut]
  assert [name.split("/")[-3] for name in moments] == ["mu", "nu"]
  for name in moments:
    assert shapes[name].shape == (4, 6)
  assert all(shapes[name].ndim < 2 for name in specs if name not in moments)


def test_the_state_is_made_where_it_belongs(mesh, placed):
  optimizer = make_optimizer(OptimizerConfig(), 9)
  shardings = train_state.optimizer_shardings(
    optimizer, SHAPES, placed, sharding.replicated(mesh)
  )
  weights = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), SHAPES)
  weights = jax.device_put(weights, placed)
  state = jax.jit(optimizer.init, out_shardings=shardings)(weights)
  (kernel,) = (
    x
    for name, x in pytree.named_leaves(state)
    if name.endswith("mu/trained/kernel")
  )
  assert kernel.addressable_shards[0].data.shape == (2, 3)
