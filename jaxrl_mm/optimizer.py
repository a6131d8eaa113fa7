"""The optimizer, as one optax chain."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxrl_mm import pytree
from jaxrl_mm.errors import InputError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with warm-up.

  Attributes:
    learning_rate: at its peak.
    warmup_steps: linear rise from zero.
    schedule: "constant" or "cosine" (to a tenth of the peak).
    b1, b2, weight_decay: of AdamW.
    clip_norm: global norm the gradient is clipped to.
    trainable: pattern over whole leaf paths; the other weights are frozen:
      no gradient, no optimizer state, not in the stage's checkpoints.
      "projector/.*" trains the projector alone, ".*/lora_[ab]" the adapters.
    moments: dtype that both moments are kept in; "bfloat16" halves their
      memory and needs b2 <= 0.99: a change of less than 0.4 % rounds to
      nothing, and the second moment would stand still.
  """

  learning_rate: float = 1e-6
  warmup_steps: int = 0
  schedule: str = "constant"
  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  trainable: str = ".*"
  moments: str = "float32"


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Step -> learning rate, over a stage of `steps` updates."""
  if config.schedule not in ("constant", "cosine"):
    raise InputError(
      f"an optimizer's schedule is '{config.schedule}'; it can be 'constant' "
      "or 'cosine'"
    )
  if config.schedule == "cosine":
    return optax.warmup_cosine_decay_schedule(
      0.0 if config.warmup_steps else config.learning_rate,
      config.learning_rate,
      config.warmup_steps,
      max(steps, config.warmup_steps + 1),
      0.1 * config.learning_rate,
    )
  return optax.linear_schedule(
    0.0 if config.warmup_steps else config.learning_rate,
    config.learning_rate,
    config.warmup_steps,
  )


def split_trainable(config: OptimizerConfig, params: dict) -> tuple[dict, dict]:
  """The weights a stage trains, and the frozen ones; see `pytree.join`."""
  trained, frozen = pytree.split(params, config.trainable)
  if not trained:
    names = [name for name, _ in pytree.named_leaves(params)]
    raise InputError(
      f"config.optimizer.trainable '{config.trainable}' matches none of the "
      f"{len(names)} weights; it is a pattern over whole paths such as "
      f"'{names[0]}'"
    )
  return trained, frozen


def make_optimizer(
  config: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """The chain; a non-finite gradient leaves weights and moments untouched.

  `optax.apply_if_finite` counts such steps in its state; the stages read the
  count and stop the run when there are too many in a row. The arithmetic is
  float32 whatever weights and moments are.

  Args:
    config: the settings.
    steps: updates of the stage, for the schedule.
  """
  _check_moments(config)
  chain = optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(
      learning_rate(config, steps),
      b1=config.b1,
      b2=config.b2,
      weight_decay=config.weight_decay,
    ),
  )
  # The bound is out of reach: optax applies bad updates once it is passed.
  chain = optax.apply_if_finite(chain, 2**30)
  return _in_float32(chain, jnp.dtype(config.moments))


def _check_moments(config):
  if config.moments not in ("float32", "bfloat16"):
    raise InputError(
      f"config.optimizer.moments is '{config.moments}'; it can be 'float32' or "
      "'bfloat16'"
    )
  if config.moments == "bfloat16" and config.b2 > 0.99:
    raise InputError(
      f"config.optimizer.b2 is {config.b2}, whose second moment would stand "
      "still in bfloat16; lower it to 0.99, or set config.optimizer.moments to "
      "'float32'"
    )


def _in_float32(
  inner: optax.GradientTransformation, moments: jnp.dtype
) -> optax.GradientTransformation:
  """`inner` as it works in float32, its state between steps in `moments`."""
  widen = partial(_cast_floats, dtype=jnp.float32)
  narrow = partial(_cast_floats, dtype=moments)

  def init(params):
    return narrow(inner.init(widen(params)))

  def update(updates, state, params):
    updates, state = inner.update(widen(updates), widen(state), widen(params))
    return updates, narrow(state)

  return optax.GradientTransformation(init, update)


def _cast_floats(tree, dtype):
  """Counters stay what they are."""
  is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  return jax.tree.map(lambda x: x.astype(dtype) if is_float(x) else x, tree)
