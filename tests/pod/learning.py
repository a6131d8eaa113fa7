"""The loop of a stage with all that a state can hold; see `kills_pod.py`.

Weights and their moments, a replay buffer, keys and a grain iterator; no model.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_mm import algorithms, sharding
from jaxrl_mm.data import loader
from jaxrl_mm.optimizer import OptimizerConfig, make_optimizer
from jaxrl_mm.structs import Trajectories
from jaxrl_mm.train.loop import LoopConfig, init_state, run_stage
from jaxrl_mm.train.step import apply_gradient

STEPS, ROWS, WEIGHTS = 100, 8, 1 << 20
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2), STEPS)
BUFFER = algorithms.selective_sample_buffer(16)


def run(folder):
  """A save after every step."""
  start = rollout(jax.random.key(0), jnp.zeros(ROWS))
  state, _ = init_state(
    {"value_head": {"kernel": jnp.zeros(WEIGHTS)}},
    OPTIMIZER,
    lambda: BUFFER.init(start),
    jax.random.key(1),
    sharding.make_mesh(),
  )
  run_stage(
    folder,
    state,
    loader.batches(range(100), encode, ROWS, seed=0),
    lambda number, state, batch: learn(number, state, batch.arrays),
    steps=STEPS,
    loop=LoopConfig(save_every=1),
    headline=("loss",),
  )


def encode(example, number):
  return np.float32(example + number)


def rollout(key, seen):
  """About half of the rows have an advantage."""
  noise = jax.random.normal(key, (ROWS, 4))
  return Trajectories(
    tokens=jnp.zeros((ROWS, 4), jnp.int32),
    mask=jnp.ones((ROWS, 4), bool),
    logp=noise,
    group=jnp.zeros(ROWS, jnp.int32),
    rewards=seen,
    verifiable=jnp.arange(ROWS) % 2.0,
    advantages=jnp.maximum(noise[:, 0], 0),
    prompts={"seen": seen},
  )


@jax.jit
def learn(number, state, seen):
  """A gradient of all that is in the state."""
  key = jax.random.fold_in(state.key, number)
  rows, memory = BUFFER.update(rollout(key, seen), state.algorithm)
  push = jnp.vdot(rows.advantages, rows.prompts["seen"] + rows.logp[:, 1])
  noise = jax.random.normal(key, (WEIGHTS,))
  gradient = jax.tree.map(lambda x: x + push * noise, state.params)
  metrics = {"tokens": jnp.float32(ROWS), "effective": memory.effective_after}
  return apply_gradient(
    state._replace(algorithm=memory), gradient, push, metrics, OPTIMIZER
  )
