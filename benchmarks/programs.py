"""Every program of a run, as shapes on a mesh: nothing is held or run."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from benchmarks import arithmetic
from benchmarks.arithmetic import Work
from jaxrl_mm import experiment, losses, pytree, run, sharding, weights
from jaxrl_mm.algorithms.calibrate import hold_in_band
from jaxrl_mm.data import loader, sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models.attention import Seats
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.optimizer import (
  OptimizerConfig,
  make_optimizer,
  split_trainable,
)
from jaxrl_mm.sampling import schedule as schedules
from jaxrl_mm.sampling.decode import Plan, Sampling
from jaxrl_mm.sampling.schedule import Schedule
from jaxrl_mm.sampling.weights import to_decode
from jaxrl_mm.structs import Demonstrations, Pairs, Trajectories
from jaxrl_mm.train import policy, preference, reward_model, sft
from jaxrl_mm.train.collect import CollectConfig, make_logp, make_score, scoring
from jaxrl_mm.train.loop import Setting, plan_state

# Stages that sample alike compile once.
_make_programs = cache(schedules.make_programs)


class Program(NamedTuple):
  """One jitted function with the shapes it is called with.

  Attributes:
    stage, name: where in the run.
    jitted: has `lower`.
    arguments: shapes with their layout.
    fixed: static arguments by name.
    beside: what else lies on the devices meanwhile.
    work: of one call, all devices together.
    calls: in one step of the stage; 0 for those that hardly take time.
    tokens: of prompts and answers that the step handles.
    settings: of the config, that make it smaller.
  """

  stage: str
  name: str
  jitted: Callable[..., Any]
  arguments: tuple[Any, ...]
  fixed: dict[str, Any]
  beside: Any
  work: Work
  calls: float
  tokens: int
  settings: str


def make_setting(e: Experiment, mesh: Mesh) -> Setting:
  """As a run has it, but for a tokenizer whose ids mean nothing here."""
  return Setting(
    model=e.model,
    tokenizer=tok.build(sources.digits_texts()),
    image_token=0,
    layout=run.make_layout(e),
    mesh=mesh,
    loop=e.loop,
    seed=e.seed,
  )


def of_run(e: Experiment, mesh: Mesh, answer_tokens: int) -> Iterator[Program]:
  """The programs of all stages.

  Args:
    e: the experiment.
    mesh: its devices need not exist here.
    answer_tokens: mean length of an answer, for the time of sampling.
  """
  setting = make_setting(e, mesh)
  params = placed(mesh, weights.shapes(e))
  scored = dataclasses.replace(e, model=scoring(e.model))
  reward = placed(mesh, weights.shapes(scored))
  view = _View(e, setting, params, reward, answer_tokens)
  stages = {
    "assemble": _assemble,
    "sft": lambda v: _sft(v, "sft", v.e.sft),
    "cold_start": lambda v: _sft(v, "cold_start", v.e.cold_start),
    "reward_model": _reward_model,
    "preference": _preference,
    "policy": _policy,
  }
  yield from _evaluation(view)
  for name in e.stages:
    if name in stages:
      yield from stages[name](view)


class _View(NamedTuple):
  """What all stages are described with."""

  e: Experiment
  setting: Setting
  params: Any
  reward: Any
  answer_tokens: int

  @property
  def shards(self) -> int:
    shape = self.setting.mesh.shape
    return shape["data"] * shape["fsdp"]

  @property
  def length(self) -> int:
    layout = self.setting.layout
    return layout.prompt_tokens + layout.completion_tokens


def placed(mesh: Mesh, params: Any) -> Any:
  """Shapes of weights with their layout."""
  return _with(params, param_shardings(mesh, params))


def _with(shapes, layout):
  make = lambda s, l: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=l)
  return jax.tree.map(make, shapes, layout)


def _rows(view, shapes):
  """Shapes of batches, cut over the batch axes."""
  layout = sharding.rows(view.setting.mesh)
  return jax.tree.map(lambda s: _with(s, layout), shapes)


def _everywhere(view, shapes):
  layout = sharding.replicated(view.setting.mesh)
  return jax.tree.map(lambda s: _with(s, layout), shapes)


def _state(view, optimizer, trained, algorithm=tuple):
  key = jax.eval_shape(lambda: jax.random.key(0))
  shapes, layout = plan_state(
    trained, optimizer, algorithm, key, view.setting.mesh
  )
  return _with(shapes, layout), layout


def _prepared(view, config: OptimizerConfig, params, steps, algorithm=tuple):
  """Optimizer, state with its layout and the frozen weights of a stage."""
  trained, frozen = split_trainable(config, params)
  optimizer = make_optimizer(config, steps)
  return optimizer, *_state(view, optimizer, trained, algorithm), frozen


def _training_work(
  view, rows: int, micro_batch: int, samples: int, trained, scored: bool
) -> Work:
  """One update: forward, forward again, backward.

  Args:
    view: of the run.
    rows: of the update.
    micro_batch: rows a shard sees at once.
    samples: rows that share a picture within a micro-batch.
    trained: the weights with a gradient.
    scored: whether the vocabulary is scored, not only the last token.
  """
  m, layout = view.e.model, view.setting.layout
  names = {name.split("/")[0] for name, _ in pytree.named_leaves(trained)}
  reads = max(rows // micro_batch, view.shards)
  forward = 1 + (m.remat != "everything_saveable")
  through = arithmetic.decoder_pass(m, rows, view.length, reads)
  passes = forward + 1 + bool(names & {"decoder"})
  total = through * passes
  if scored:
    tokens = rows * layout.completion_tokens
    total += arithmetic.head(m, tokens, reads) * (3 + ("embedder" in names))
  pictures = rows // min(samples, micro_batch)
  towers = forward + 2 if "vision" in names else 1
  seen = arithmetic.vision_pass(m, layout.pictures, pictures, reads)
  return total + seen * towers


def _scoring_work(view, of, scored: bool) -> Work:
  m, layout = view.e.model, view.setting.layout
  reads = max(of.rows // of.micro_batch, view.shards)
  total = arithmetic.decoder_pass(m, of.rows, view.length, reads)
  if scored:
    total += arithmetic.head(m, of.rows * layout.completion_tokens, reads)
  prompts = of.rows // min(of.samples, of.micro_batch)
  return total + arithmetic.vision_pass(m, layout.pictures, prompts, reads)


def _assemble(view) -> Iterator[Program]:
  a = view.e.assemble
  # The reasoner waits beside the model that the projector is aligned with.
  yield from _sft(view, "assemble", a.align, beside=view.params)
  if a.text:
    text = dataclasses.replace(view.setting.layout, pictures=None)
    setting = dataclasses.replace(view.setting, layout=text)
    without = view._replace(setting=setting)
    yield from _sft(without, "assemble", a.text, "text", view.params)


def _sft(view, stage, config, name="train step", beside=()):
  layout = view.setting.layout
  optimizer, state, places, frozen = _prepared(
    view, config.optimizer, view.params, config.steps
  )
  shape, text = jax.ShapeDtypeStruct, (config.batch, layout.completion_tokens)
  batch = Demonstrations(
    loader.prompt_shapes(layout, config.batch),
    shape(text, jnp.int32),
    shape(text, bool),
  )
  yield Program(
    stage,
    name,
    sft.make_update(view.setting, config, optimizer, places),
    (state, frozen, _rows(view, batch)),
    {},
    beside,
    _training_work(
      view, config.batch, config.micro_batch, 1, state.params, True
    ),
    1,
    config.batch * view.length,
    f"config.{stage}.micro_batch, config.mesh.tensor, config.data."
    "completion_tokens",
  )


def _pairs(view, rows: int) -> Pairs:
  layout, shape = view.setting.layout, jax.ShapeDtypeStruct
  text = (rows, 2, layout.completion_tokens)
  pairs = Pairs(
    loader.prompt_shapes(layout, rows),
    shape(text, jnp.int32),
    shape(text, bool),
    shape((rows, 2), jnp.float32),
  )
  return _rows(view, pairs)


def _reward_model(view) -> Iterator[Program]:
  config = view.e.reward_model
  yield from _collect(view, "reward_model", config.collect, view.params)
  optimizer, state, places, frozen = _prepared(
    view, config.optimizer, view.reward, config.steps
  )
  yield Program(
    "reward_model",
    "train step",
    reward_model.make_update(view.setting, config, optimizer, places),
    (state, frozen, _pairs(view, config.batch)),
    {},
    view.params,
    _training_work(
      view, 2 * config.batch, 2 * config.micro_batch, 2, state.params, False
    ),
    1,
    2 * config.batch * view.length,
    "config.reward_model.micro_batch, config.mesh.fsdp, "
    "config.reward_model.optimizer.trainable",
  )


def _preference(view) -> Iterator[Program]:
  config = view.e.preference
  yield from _collect(view, "preference", config.collect, view.params)
  shift = losses.preference.reward_shift()
  optimizer, state, places, frozen = _prepared(
    view, config.optimizer, view.params, config.steps, lambda: shift.init(())
  )
  yield Program(
    "preference",
    "train step",
    preference.make_update(view.setting, config, optimizer, shift, places),
    (state, frozen, _pairs(view, config.batch)),
    {},
    _reward(view),
    _training_work(
      view, 2 * config.batch, 2 * config.micro_batch, 2, state.params, True
    ),
    1,
    2 * config.batch * view.length,
    "config.preference.micro_batch, config.mesh.tensor",
  )


def _reward(view):
  """The reward model, where a stage has trained one."""
  return view.reward if "reward_model" in view.e.stages else ()


def _collect(view, stage, config: CollectConfig, params) -> Iterator[Program]:
  """Sampling and scoring of the pairs of a stage."""
  rows = config.prompts_per_step * config.samples_per_prompt
  pairs = f"{stage} pairs"
  asked = _Asked(
    pairs,
    config.prompts_per_step,
    config.samples_per_prompt,
    config.temperature,
    Schedule(),
  )
  yield from _sampling(view, asked, params, _reward(view))
  scoring_of = _Scoring(
    pairs,
    rows,
    config.samples_per_prompt,
    config.micro_batch,
    f"config.{stage}.collect.micro_batch, config.mesh.tensor",
  )
  yield from _rows_scored(view, scoring_of, params)


class _Scoring(NamedTuple):
  """One call of what scores whole rows."""

  stage: str
  rows: int
  samples: int
  micro_batch: int
  settings: str


def _rows_scored(view, of: _Scoring, params, beside=()):
  """Log-probs under the policy, and scores of the reward model."""
  layout, shape = view.setting.layout, jax.ShapeDtypeStruct
  text = (of.rows, layout.completion_tokens)
  batch = _rows(
    view,
    (
      loader.prompt_shapes(layout, of.rows),
      shape(text, jnp.int32),
      shape(text, bool),
    ),
  )
  cut = (view.setting, of.samples, of.micro_batch)
  if params is not None:
    yield Program(
      of.stage,
      "log-probs",
      make_logp(*cut),
      (params, *batch),
      {},
      (beside, _reward(view)),
      _scoring_work(view, of, True),
      1,
      0,
      of.settings,
    )
  if _reward(view):
    yield Program(
      of.stage,
      "reward score",
      make_score(*cut),
      (view.reward, *batch),
      {},
      (beside, () if params is None else params),
      _scoring_work(view, of, False),
      1,
      0,
      of.settings,
    )


def _evaluation(view) -> Iterator[Program]:
  """The questions after a stage, asked of the policy."""
  c = view.e.evaluation
  asked = _Asked("evaluation", c.batch, 1, 0.0, Schedule())
  if j := view.e.judging:
    asked = _Asked("evaluation", j.batch, j.samples, 1.0, Schedule())
  yield from _sampling(view, asked, view.params, _reward(view))
  of = _Scoring(
    "evaluation",
    c.batch,
    1,
    c.micro_batch,
    "config.evaluation.micro_batch, config.mesh.tensor",
  )
  yield from list(_rows_scored(view, of, view.params))[:1]


class _Asked(NamedTuple):
  """One call of the sampler; `weights` is the form it keeps them in."""

  stage: str
  prompts: int
  samples: int
  temperature: float
  schedule: Schedule
  weights: str = "model"


def _sampling(view, asked: _Asked, params, beside) -> Iterator[Program]:
  """Weights for it, prefill, decode and resize, each at its largest."""
  m, layout = view.e.model, view.setting.layout
  narrow = jax.jit(lambda params: to_decode(m, params, asked.weights))
  size = 2.0 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
  yield Program(
    asked.stage,
    "reshard",
    narrow,
    (params,),
    {},
    beside,
    Work(0.0, size),
    1,
    0,
    "config.policy.decode_weights, config.mesh.tensor",
  )
  beside = beside, params
  params = _compiled_shapes(view, narrow, params)
  sampling = Sampling(
    samples_per_prompt=asked.samples,
    max_tokens=layout.completion_tokens,
    end_token=0,
    pad_token=0,
    image_token=0,
    temperature=asked.temperature,
  )
  programs = _make_programs(m, sampling, asked.schedule)
  cut = schedules.sizes(
    asked.schedule,
    prompts=asked.prompts // view.shards,
    length=layout.prompt_tokens,
    samples=asked.samples,
    shards=view.shards,
  )
  places, slots, chunk = (n * view.shards for n in cut)
  prompts = _rows(view, loader.prompt_shapes(layout, asked.prompts))
  room = layout.completion_tokens
  at = lambda capacity: _compiled_shapes(
    view, programs.empty, prompts, places, slots, capacity
  )
  number = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  settings = (
    "config.policy.schedule.slots, config.mesh.tensor, "
    "config.data.completion_tokens"
  )
  rows = asked.prompts * asked.samples
  each = arithmetic.decoder_pass(m, chunk, layout.prompt_tokens, view.shards)
  each += arithmetic.vision_pass(m, layout.pictures, chunk, view.shards)
  yield Program(
    asked.stage,
    "prefill",
    programs.prefill,
    (params, prompts, at(room), number(chunk), number(chunk)),
    {},
    beside,
    each,
    -(-asked.prompts // chunk),
    0,
    settings,
  )
  steps = min(asked.schedule.segment, room)
  plan = Plan(
    fresh=jax.ShapeDtypeStruct((slots,), bool),
    row=number(slots),
    limit=number(slots),
    seats=Seats(number(places, asked.samples), number(slots)),
    leave_at=number(),
  )
  key = _everywhere(view, jax.eval_shape(lambda: jax.random.key(0)))
  token = arithmetic.decode_token(
    m,
    rows=slots,
    prompts=places,
    prompt=layout.prompt_tokens,
    own=view.answer_tokens // 2,
    reads=view.shards,
  )
  segments = -(-rows * view.answer_tokens // (slots * steps))
  yield Program(
    asked.stage,
    "decode",
    programs.decode,
    (params, at(room), plan, key),
    {},
    (beside, prompts),
    token * steps,
    segments,
    rows * (layout.prompt_tokens + view.answer_tokens),
    settings,
  )
  if room > asked.schedule.block:
    yield Program(
      asked.stage,
      "resize",
      programs.resize,
      (at(room // 2), number(places), number(slots)),
      {"capacity": room},
      (beside, prompts, params),
      Work(),
      0,
      0,
      settings,
    )


def _compiled_shapes(view, jitted, *arguments):
  """What a program gives back, in the layout that the compiler gives it."""
  with jax.set_mesh(view.setting.mesh):
    lowered = jitted.lower(*arguments)
  return _with(lowered.out_info, lowered.compile().output_shardings)


def _policy(view) -> Iterator[Program]:
  e, config, setting = view.e, view.e.policy, view.setting
  terms = list(experiment.rewards(e))
  rolled = policy.trajectory_shapes(setting.layout, config, terms)
  algorithm = policy.make_algorithm(config, e.seed)
  learned = config.learned or policy.LearnedConfig()
  controller = hold_in_band(learned.threshold or 0.0, learned.band)
  memory_of = lambda: algorithm.transform.init(optax.tree.zeros_like(rolled))
  optimizer, state, places, frozen = _prepared(
    view,
    config.optimizer,
    view.params,
    config.updates,
    lambda: (memory_of(), controller.init(())),
  )
  asked = _Asked(
    "policy",
    config.prompts_per_step,
    config.samples_per_prompt,
    config.temperature,
    config.schedule,
    config.decode_weights,
  )
  idle = state._replace(params=())
  yield from _sampling(view, asked, view.params, (idle, _reward(view)))
  trajectories: Trajectories = _rows(view, rolled)
  if config.learned:
    yield from _rows_scored(
      view,
      _Scoring(
        "policy",
        config.rows,
        config.samples_per_prompt,
        config.micro_batch,
        "config.policy.micro_batch, config.mesh.tensor",
      ),
      None,
      (state, frozen, trajectories),
    )
  yield Program(
    "policy",
    "train step",
    policy.make_update(
      setting, config, algorithm, controller, optimizer, places
    ),
    (state, frozen, trajectories),
    {},
    _reward(view),
    _training_work(
      view,
      config.rows,
      config.micro_batch,
      config.samples_per_prompt,
      state.params,
      True,
    ),
    1,
    config.rows * view.length,
    "config.policy.micro_batch, config.mesh.tensor, "
    "config.policy.algorithm.capacity",
  )
