"""Every program of a run, stage by stage."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from benchmarks import arithmetic, programs, samplers
from benchmarks.arithmetic import Work
from benchmarks.programs import Cut, Program, View
from benchmarks.samplers import Asked
from jaxrl_mm import experiment, inputs, losses, pytree, weights
from jaxrl_mm.algorithms.calibrate import hold_in_band
from jaxrl_mm.data import loader, sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.optimizer import (
  OptimizerConfig,
  make_optimizer,
  split_trainable,
)
from jaxrl_mm.sampling.schedule import Schedule
from jaxrl_mm.structs import Demonstrations, Pairs, Trajectories
from jaxrl_mm.train import policy, preference, reward_model, sft
from jaxrl_mm.train.collect import (
  CollectConfig,
  make_logp,
  make_score,
  make_token_logp,
  scoring,
)
from jaxrl_mm.train.loop import Setting, plan_state


def make_setting(e: Experiment, mesh: Mesh) -> Setting:
  """As a run has it, but for a tokenizer whose ids mean nothing here."""
  return Setting(
    model=e.model,
    tokenizer=tok.build(sources.digits_texts()),
    image_token=0,
    layout=inputs.make_layout(e),
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
  params = programs.placed(mesh, weights.shapes(e))
  scored = dataclasses.replace(e, model=scoring(e.model))
  reward = programs.placed(mesh, weights.shapes(scored))
  view = View(e, setting, params, reward, answer_tokens)
  stages = {
    "assemble": _assemble,
    "sft": lambda v: _sft(v, "sft", v.e.sft, "sft"),
    "cold_start": lambda v: _sft(v, "cold_start", v.e.cold_start, "cold_start"),
    "reward_model": _reward_model,
    "preference": _preference,
    "policy": _policy,
  }
  yield from _evaluation(view)
  for name in e.stages:
    if name in stages:
      yield from stages[name](view)


def _state(view, optimizer, trained, algorithm=tuple):
  key = jax.eval_shape(lambda: jax.random.key(0))
  shapes, layout = plan_state(
    trained, optimizer, algorithm, key, view.setting.mesh
  )
  return programs.with_layout(shapes, layout), layout


def _prepared(view, config: OptimizerConfig, params, steps, algorithm=tuple):
  """Optimizer, state with its layout and the frozen weights of a stage."""
  trained, frozen = split_trainable(config, params)
  optimizer = make_optimizer(config, steps)
  return optimizer, *_state(view, optimizer, trained, algorithm), frozen


def _pass(view, cut: Cut) -> tuple[Work, Work]:
  """Once through the decoder, and through the tower."""
  m, layout = view.e.model, view.setting.layout
  reads = view.shards * cut.rounds(view)
  shared, prompts = cut.shared(layout), cut.prompts(layout)
  return (
    arithmetic.decoder_pass(m, cut.rows, view.length, reads, shared),
    arithmetic.vision_pass(m, layout.pictures, prompts, reads),
  )


def _head(view, cut: Cut) -> Work:
  """Scores of the vocabulary for every token of the answers."""
  tokens = cut.rows * view.setting.layout.completion_tokens
  reads = view.shards * cut.rounds(view)
  return arithmetic.head(view.e.model, tokens, reads)


def _training_work(view, cut: Cut, trained, scored: bool) -> Work:
  """One update: forward, forward again, backward.

  Args:
    view: of the run.
    cut: of the update.
    trained: the weights with a gradient.
    scored: whether the vocabulary is scored, not only the last token.
  """
  names = {name.split("/")[0] for name, _ in pytree.named_leaves(trained)}
  forward = 1 + (view.e.model.remat != "everything_saveable")
  through, seen = _pass(view, cut)
  total = through * (forward + 1 + bool(names & {"decoder"}))
  if scored:
    total += _head(view, cut) * (3 + ("embedder" in names))
  return total + seen * (forward + 2 if "vision" in names else 1)


def _scoring_work(view, cut: Cut, scored: bool) -> Work:
  through, seen = _pass(view, cut)
  return through + seen + (_head(view, cut) if scored else Work())


def _assemble(view) -> Iterator[Program]:
  a = view.e.assemble
  # The reasoner waits beside the model that the projector is aligned with.
  yield from _sft(view, "assemble", a.align, "assemble.align", view.params)
  if a.text:
    text = dataclasses.replace(view.setting.layout, pictures=None)
    setting = dataclasses.replace(view.setting, layout=text)
    without = view._replace(setting=setting)
    yield from _sft(
      without, "assemble text", a.text, "assemble.text", view.params
    )


def _sft(view, stage, config, path, beside=()):
  """The training of a stage whose settings stand under `path`."""
  layout = view.setting.layout
  optimizer, state, places, frozen = _prepared(
    view, config.optimizer, view.params, config.steps
  )
  cut = Cut(config.batch, 1, config.micro_batch, config.micro_tokens)
  shape, text = jax.ShapeDtypeStruct, (config.batch, layout.completion_tokens)
  batch = Demonstrations(
    loader.prompt_shapes(layout, config.batch),
    shape(text, jnp.int32),
    shape(text, bool),
  )
  yield Program(
    stage,
    "train step",
    sft.make_update(view.setting, config, optimizer, places),
    lambda: (state, frozen, programs.rows(view, batch)),
    {},
    beside,
    _training_work(view, cut, state.params, True),
    1,
    config.batch * view.length,
    _smaller(path),
    cut.rounds(view),
  )


def _smaller(path: str) -> str:
  """What makes the train step of a stage take less, the cheapest first."""
  own = "micro_tokens", "micro_batch", "optimizer.moments"
  mesh = "config.mesh.tensor", "config.mesh.sequence"
  return ", ".join([*(f"config.{path}.{name}" for name in own), *mesh])


def _pairs(view, rows: int) -> Pairs:
  layout, shape = view.setting.layout, jax.ShapeDtypeStruct
  text = (rows, 2, layout.completion_tokens)
  pairs = Pairs(
    loader.prompt_shapes(layout, rows),
    shape(text, jnp.int32),
    shape(text, bool),
    shape((rows, 2), jnp.float32),
  )
  return programs.rows(view, pairs)


def _reward_model(view) -> Iterator[Program]:
  config = view.e.reward_model
  yield from _collect(view, "reward_model", config.collect, view.params)
  optimizer, state, places, frozen = _prepared(
    view, config.optimizer, view.reward, config.steps
  )
  cut = Cut(2 * config.batch, 2, 2 * config.micro_batch, config.micro_tokens)
  yield Program(
    "reward_model",
    "train step",
    reward_model.make_update(view.setting, config, optimizer, places),
    lambda: (state, frozen, _pairs(view, config.batch)),
    {},
    view.params,
    _training_work(view, cut, state.params, False),
    1,
    2 * config.batch * view.length,
    _smaller("reward_model"),
    cut.rounds(view),
  )


def _preference(view) -> Iterator[Program]:
  config = view.e.preference
  yield from _collect(view, "preference", config.collect, view.params)
  shift = losses.preference.reward_shift()
  optimizer, state, places, frozen = _prepared(
    view, config.optimizer, view.params, config.steps, lambda: shift.init(())
  )
  cut = Cut(2 * config.batch, 2, 2 * config.micro_batch, config.micro_tokens)
  yield Program(
    "preference",
    "train step",
    preference.make_update(view.setting, config, optimizer, shift, places),
    lambda: (state, frozen, _pairs(view, config.batch)),
    {},
    _reward(view),
    _training_work(view, cut, state.params, True),
    1,
    2 * config.batch * view.length,
    _smaller("preference"),
    cut.rounds(view),
  )


def _reward(view):
  """The reward model, where a stage has trained one."""
  return view.reward if "reward_model" in view.e.stages else ()


def _collect(view, stage, config: CollectConfig, params) -> Iterator[Program]:
  """Sampling and scoring of the pairs of a stage."""
  rows = config.prompts_per_step * config.samples_per_prompt
  pairs = f"{stage} pairs"
  asked = Asked(
    pairs,
    config.prompts_per_step,
    config.samples_per_prompt,
    config.temperature,
    Schedule(),
  )
  yield from samplers.of_call(view, asked, params, _reward(view))
  scoring_of = _Scoring(
    pairs,
    Cut(
      rows,
      config.samples_per_prompt,
      config.micro_batch,
      config.micro_tokens,
    ),
    f"config.{stage}.collect.micro_tokens, "
    f"config.{stage}.collect.micro_batch, config.mesh.tensor",
  )
  yield from _rows_scored(view, scoring_of, params)


class _Scoring(NamedTuple):
  """One call of what scores whole rows."""

  stage: str
  cut: Cut
  settings: str


def _rows_of(view, of: _Scoring):
  """Prompts, tokens and mask."""
  layout, shape = view.setting.layout, jax.ShapeDtypeStruct
  text = (of.cut.rows, layout.completion_tokens)
  batch = (
    loader.prompt_shapes(layout, of.cut.rows),
    shape(text, jnp.int32),
    shape(text, bool),
  )
  return programs.rows(view, batch)


def _token_logp(view, of: _Scoring, beside, calls: int) -> Program:
  """Of the reference, and of the weights that the sampler has rounded."""
  batch, temperature = _rows_of(view, of), view.e.policy.temperature
  return Program(
    of.stage,
    "log-probs",
    make_token_logp(view.setting, *of.cut[1:], temperature),
    lambda: (view.params, *batch),
    {},
    beside,
    _scoring_work(view, of.cut, True),
    calls,
    0,
    of.settings,
    of.cut.rounds(view),
  )


def _rows_scored(view, of: _Scoring, params, beside=()):
  """Log-probs under the policy, and scores of the reward model."""
  batch = _rows_of(view, of)
  at_once, rounds = of.cut[1:], of.cut.rounds(view)
  if params is not None:
    yield Program(
      of.stage,
      "log-probs",
      make_logp(view.setting, *at_once),
      lambda: (params, *batch),
      {},
      (beside, _reward(view)),
      _scoring_work(view, of.cut, True),
      1,
      0,
      of.settings,
      rounds,
    )
  if _reward(view):
    yield Program(
      of.stage,
      "reward score",
      make_score(view.setting, *at_once),
      lambda: (view.reward, *batch),
      {},
      (beside, () if params is None else params),
      _scoring_work(view, of.cut, False),
      1,
      0,
      of.settings,
      rounds,
    )


def _evaluation(view) -> Iterator[Program]:
  """The questions after a stage, asked of the policy."""
  e, c = view.e, view.e.evaluation
  asked = Asked("evaluation", c.batch, 1, 0.0, Schedule())
  if j := e.judging:
    asked = Asked("evaluation", j.batch, j.samples, 1.0, Schedule())
  yield from samplers.of_call(view, asked, view.params, _reward(view))
  if e.judging or not view.setting.layout.pictures:
    return
  of = _Scoring(
    "evaluation",
    Cut(c.batch, 1, c.micro_batch, 0),
    "config.evaluation.micro_batch, config.mesh.tensor",
  )
  # How likely answers are without their pictures, once and not for each batch.
  logp = next(_rows_scored(view, of, view.params))
  yield logp._replace(calls=0)


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
  asked = Asked(
    "policy",
    config.prompts_per_step,
    config.samples_per_prompt,
    config.temperature,
    config.schedule,
    config.decode_weights,
    config.cache,
    config.top_k,
    config.top_p,
  )
  idle = state._replace(params=())
  reference = state.params if config.needs_reference else ()
  others = reference, _reward(view)
  yield from samplers.of_call(view, asked, view.params, (idle, others))
  trajectories: Trajectories = programs.rows(view, rolled)
  # The rest of them is among what a program is given.
  more = trajectories._replace(prompts=(), tokens=(), mask=())
  cut = Cut(
    config.rows,
    config.samples_per_prompt,
    config.micro_batch,
    config.micro_tokens,
  )
  scoring_of = _Scoring(
    "policy",
    cut,
    "config.policy.micro_tokens, config.policy.micro_batch, config.mesh.tensor",
  )
  if config.learned:
    beside = state, frozen, reference, more
    yield from _rows_scored(view, scoring_of, None, beside)
  if calls := config.needs_reference + config.needs_trainer:
    yield _token_logp(view, scoring_of, (idle, others, more), calls)
  yield Program(
    "policy",
    "train step",
    policy.make_update(
      setting, config, algorithm, controller, optimizer, places
    ),
    lambda: (state, frozen, trajectories),
    {},
    others,
    _training_work(view, cut, state.params, True),
    1,
    config.rows * view.length,
    _smaller("policy") + ", config.policy.algorithm.capacity",
    -(-cut.rounds(view) // config.updates_per_rollout),
  )
