import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_mm.structs import Completions, Demonstrations, Prompts, Trajectories


def _prompts(rows):
  return Prompts(
    tokens=jnp.zeros((rows, 3), jnp.int32),
    mask=jnp.ones((rows, 3), bool),
    images=jnp.zeros((rows, 1, 2, 2, 3), jnp.uint8),
    group=jnp.arange(rows),
  )


def test_every_leaf_of_a_trajectory_moves_with_its_row():
  rows = Trajectories(
    tokens=jnp.arange(8).reshape(4, 2),
    mask=jnp.ones((4, 2), bool),
    logp=jnp.zeros((4, 2)),
    group=jnp.arange(4),
    rewards=jnp.arange(4.0),
    verifiable=jnp.arange(4.0),
    advantages=jnp.zeros(4),
    prompts=_prompts(4),
  )
  order = np.array([2, 0])
  moved = jax.tree.map(lambda x: x[order], rows)
  np.testing.assert_array_equal(moved.tokens, [[4, 5], [0, 1]])
  np.testing.assert_array_equal(moved.rewards, [2, 0])
  np.testing.assert_array_equal(moved.prompts.group, [2, 0])
  assert moved.reference_logp is None


def test_the_structs_are_pytrees_of_their_fields():
  assert len(jax.tree.leaves(_prompts(2))) == 4
  demonstrations = Demonstrations(_prompts(2), *[jnp.zeros((2, 1))] * 2)
  assert len(jax.tree.leaves(demonstrations)) == 6
  assert len(jax.tree.leaves(Completions(*[jnp.zeros((2, 1))] * 3))) == 3
