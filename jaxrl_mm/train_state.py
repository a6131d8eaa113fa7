"""Everything a stage changes on the device, as one pytree."""

from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Int, PRNGKeyArray


class TrainState(NamedTuple):
  """What a checkpoint must hold for a run to go on with the same bits.

  Attributes:
    step: updates done in this stage.
    params: the weights this stage trains; frozen ones never change and are
      passed beside the state.
    opt_state: of the optimizer.
    algorithm: of the trajectory transform (the replay buffer lives here);
      () in stages without one.
    key: from which the keys of step n are folded.
  """

  step: Int[Array, ""]
  params: Any
  opt_state: Any
  algorithm: Any
  key: PRNGKeyArray


def optimizer_shardings(
  optimizer: optax.GradientTransformation,
  params: Any,
  param_shardings: Any,
  replicated: jax.sharding.Sharding,
) -> Any:
  """Moments lie where their weights lie, counters everywhere.

  Args:
    optimizer: whose state is meant.
    params: shapes of the weights.
    param_shardings: a sharding for each weight.
    replicated: the layout of all other state.
  """
  shapes = jax.eval_shape(optimizer.init, params)
  return optax.tree.map_params(
    optimizer,
    lambda _, sharding: sharding,
    shapes,
    param_shardings,
    transform_non_params=lambda _: replicated,
  )
