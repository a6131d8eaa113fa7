"""The loop every stage runs in: restore, step, write, save."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl_mm import preemption, pytree, sharding
from jaxrl_mm.checkpoint import Checkpoints
from jaxrl_mm.data import loader
from jaxrl_mm.data.loader import Layout
from jaxrl_mm.data.sources import Source
from jaxrl_mm.data.tokenizer import Tokenizer
from jaxrl_mm.errors import InputError
from jaxrl_mm.metrics import MetricsWriter, compilations
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.optimizer import make_optimizer, split_trainable
from jaxrl_mm.preemption import Preempted
from jaxrl_mm.train.step import count_tokens
from jaxrl_mm.train_state import TrainState, optimizer_shardings


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How a stage saves and when it gives up.

  Attributes:
    save_every: steps between checkpoints; the last step is always saved.
    keep: newest checkpoints to keep.
    max_bad_steps: non-finite updates in a row after which the run stops.
  """

  save_every: int = 100
  keep: int = 2
  max_bad_steps: int = 10


@dataclasses.dataclass(frozen=True)
class Setting:
  """What all stages of a run share.

  Attributes:
    model: sizes.
    tokenizer: of the run.
    image_token: id of the image placeholder.
    layout: static shapes of the data.
    mesh: in use.
    loop: see `LoopConfig`.
    seed: of the run.
    profile: steps of each stage that are traced.
  """

  model: ModelConfig
  tokenizer: Tokenizer
  image_token: int
  layout: Layout
  mesh: Mesh
  loop: LoopConfig
  seed: int
  profile: range = range(0)


# (number of the step, from 1; state; batch) -> (state, metrics)
StageStep = Callable[[int, TrainState, Any], tuple[TrainState, dict[str, Any]]]


def train(
  setting: Setting,
  config: Any,
  params: Params,
  source: Source,
  encode: Callable[..., Any],
  make_update: Callable[[Any, TrainState], Callable[..., Any]],
  folder: Path,
  *,
  answers: int = 1,
  algorithm_init: Callable[[], Any] = tuple,
  told: Mapping[str, float] | None = None,
  headline: Sequence[str],
  part: str = "",
  before: int = 0,
) -> Params:
  """Trains on rows that are read: all stages but the policy's, which draws.

  Args:
    setting: shared by all stages.
    config: of the stage: its `steps`, `batch` and `optimizer` count here.
    params: weights on the mesh; they are given away.
    source: what is read.
    encode: a record of it to a row, see `loader.batches`.
    make_update: from optax and the layout of the state to a step
      `(state, frozen weights, rows) -> (state, metrics)`.
    folder, headline, part, before: see `run_stage`.
    answers: that a row has to its prompt, for the count of tokens.
    algorithm_init: see `init_state`.
    told: stands in each line of the metrics.

  Returns:
    The trained weights.
  """
  trained, frozen = split_trainable(config.optimizer, params)
  optimizer = make_optimizer(config.optimizer, config.steps)
  key = jax.random.key(setting.seed)
  state, layout = init_state(
    trained, optimizer, algorithm_init, key, setting.mesh
  )
  update = make_update(optimizer, layout)

  def step(_, state, batch):
    rows = sharding.to_device(batch.arrays, setting.mesh)
    state, metrics = update(state, frozen, rows)
    tokens = count_tokens(rows.mask, *[rows.prompts.mask] * answers)
    return state, metrics | {"tokens": tokens} | (told or {})

  state = run_stage(
    folder,
    state,
    process_batches(setting, source, encode, config.batch),
    step,
    steps=config.steps,
    loop=setting.loop,
    headline=headline,
    part=part,
    before=before,
    profile=setting.profile,
  )
  return pytree.join(state.params, frozen)


def process_batches(
  setting: Setting, source: Source, encode: Callable[..., Any], rows: int
) -> Iterator[loader.Batch]:
  """This process's part of endless batches of `rows` rows in all."""
  return loader.batches(
    source,
    partial(encode, tokenizer=setting.tokenizer, layout=setting.layout),
    rows,
    seed=setting.seed,
    rows=sharding.local_rows(setting.mesh, rows),
  )


def state_shardings(
  mesh: Mesh, params: Any, optimizer: Any, algorithm: Any
) -> TrainState:
  """A layout for every array of a state.

  Args:
    mesh: the mesh.
    params: shapes of the weights.
    optimizer: optax.
    algorithm: shapes of the trajectory transform's state; the rows of a
      replay buffer are cut over the batch axes, the rest is replicated.
  """
  everywhere = sharding.replicated(mesh)
  weights = param_shardings(mesh, params)
  buffered = lambda name, _: (
    NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
    if pytree.matches(".*/rows/.*", name)
    else everywhere
  )
  return TrainState(
    step=everywhere,
    params=weights,
    opt_state=optimizer_shardings(optimizer, params, weights, everywhere),
    algorithm=pytree.map_with_name(buffered, algorithm),
    key=everywhere,
  )


def run_stage(
  folder: Path,
  state: TrainState,
  batches: Iterator[Any],
  step: StageStep,
  *,
  steps: int,
  loop: LoopConfig,
  headline: Sequence[str],
  part: str = "",
  before: int = 0,
  profile: range = range(0),
) -> TrainState:
  """Trains to `steps`, continuing from the newest checkpoint in `folder`.

  A stage of several parts calls this once for each: the metrics are those of
  the whole stage, the checkpoints those of the part.

  Args:
    folder: of the stage; metrics and checkpoints go there.
    state: at step 0.
    batches: a grain iterator; its position is saved with the state.
    step: one update.
    steps: of the stage, or of its part.
    loop: see `LoopConfig`.
    headline: metrics shown on the bar.
    part: name of the part, for its checkpoints.
    before: steps of the parts before it.
    profile: steps traced into `folder`/profile, for XProf.

  Raises:
    InputError: too many updates in a row were not finite.
    Preempted: the machine will be taken away; the step is saved.
  """
  saved = folder / part / "checkpoints"
  with Checkpoints(saved, loop.keep) as checkpoints:
    start = checkpoints.latest_step()
    if start:
      state, position = checkpoints.restore(state)
      batches.set_state(position)
    if start >= steps:
      return state
    total = before + steps
    with (
      MetricsWriter(folder, before + start, total, headline) as writer,
      ExitStack() as trace,
    ):
      pending = None
      for number in range(start + 1, steps + 1):
        if number == profile.start:
          trace.enter_context(jax.profiler.trace(str(folder / "profile")))
        state, metrics = step(number, state, next(batches))
        if number + 1 == profile.stop:
          jax.block_until_ready(state)
          trace.close()
        metrics["compilations"] = compilations()
        # Written one step late: the device works on this one meanwhile.
        if pending:
          _check(folder, writer.write(*pending), pending[0], loop)
        pending = before + number, metrics, time.perf_counter()
        leaving = preemption.is_near()
        if number % loop.save_every == 0 or number == steps or leaving:
          _check(folder, writer.write(*pending), pending[0], loop)
          pending = None
          writer.sync()
          checkpoints.save(number, state, batches.get_state())
        if leaving and number < steps:
          checkpoints.wait()
          raise Preempted(
            f"{folder.name} was asked to end and has saved step {number}; the "
            "same command continues"
          )
  return state


def _check(folder, metrics, step, loop):
  if metrics["bad_steps"] >= loop.max_bad_steps:
    raise InputError(
      f"{folder.name}: the last {loop.max_bad_steps} updates up to step {step} "
      f"had a gradient that is not finite; delete {folder} and start this "
      "stage again with a lower learning rate"
    )


def init_state(
  params: Any,
  optimizer: Any,
  algorithm_init: Callable[[], Any],
  key: jax.Array,
  mesh: Mesh,
) -> tuple[TrainState, TrainState]:
  """The state at step 0, already laid out, and its layout.

  Args:
    params: weights to train, on the mesh.
    optimizer: optax.
    algorithm_init: makes the transform's state from nothing.
    key: of the stage.
    mesh: the mesh.
  """
  build = partial(_first_state, optimizer, algorithm_init)
  layout = plan_state(params, optimizer, algorithm_init, key, mesh)[1]
  state = jax.jit(build, out_shardings=layout, donate_argnums=0)(params, key)
  return state, layout


def plan_state(
  params: Any,
  optimizer: Any,
  algorithm_init: Callable[[], Any],
  key: jax.Array,
  mesh: Mesh,
) -> tuple[TrainState, TrainState]:
  """Shapes and layout of `init_state`'s state; all arguments may be shapes."""
  build = partial(_first_state, optimizer, algorithm_init)
  shapes = jax.eval_shape(build, params, key)
  layout = state_shardings(mesh, shapes.params, optimizer, shapes.algorithm)
  return shapes, layout


def _first_state(optimizer, algorithm_init, params, key) -> TrainState:
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    algorithm=algorithm_init(),
    key=key,
  )
