"""Everything a stage changes on the device, as one pytree."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from jaxrl_mm import pytree


class TrainState(NamedTuple):
  """What a checkpoint must hold for a run to go on with the same bits.

  Attributes:
    step: updates done in this stage.
    params: weights.
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


def consecutive_bad_steps(opt_state: Any) -> Int[Array, ""]:
  """Updates in a row that were skipped because they were not finite."""
  return opt_state.notfinite_count


def describe(params: Any) -> str:
  """`0.25 M weights in 4 parts`, for people."""
  total = sum(x.size for x in jax.tree.leaves(params))
  return f"{total / 1e6:.2f} M weights in {len(pytree.named_leaves(params))}"


Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]
