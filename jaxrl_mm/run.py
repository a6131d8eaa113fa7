"""A run: stage after stage, from its config to its summary.

A stage is a function from the models so far to the models after it. One that
is finished gives back its weights from its checkpoints, so a run that is
started again walks through all its stages.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxrl_mm import (
  experiment,
  inputs,
  preflight,
  report,
  sharding,
  summary,
  weights,
)
from jaxrl_mm.data import difficulty, skipping
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.sources import Source
from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate.accuracy import make_evaluator
from jaxrl_mm.evaluate.blindness import make_blindness
from jaxrl_mm.evaluate.judging import make_judging
from jaxrl_mm.experiment import REWARDS, Experiment
from jaxrl_mm.inputs import Sources
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.train import assemble, policy, preference, reward_model, sft
from jaxrl_mm.train import difficulty as labelling
from jaxrl_mm.train.loop import Setting


class Run(NamedTuple):
  """What the stages of a run share.

  Attributes:
    experiment: the config.
    setting: tokenizer, shapes and mesh.
    sources: of questions.
    workdir: folder of the run.
  """

  experiment: Experiment
  setting: Setting
  sources: Sources
  workdir: Path


class Models(NamedTuple):
  """The weights so far.

  Attributes:
    policy: the model that answers.
    reward: the reward model, once a stage has trained one.
  """

  policy: Params
  reward: Params | None = None


Stage = Callable[[Run, Models], Models]


def _assemble(r: Run, models: Models) -> Models:
  e = r.experiment
  whole = assemble.run(
    r.setting,
    e.assemble,
    models.policy,
    r.sources.demonstrations,
    r.workdir / "assemble",
  )
  return models._replace(policy=whole)


def _sft(r: Run, models: Models) -> Models:
  config, source = r.experiment.sft, r.sources.demonstrations
  trained = sft.run(r.setting, config, models.policy, source, r.workdir / "sft")
  return models._replace(policy=trained)


def _reward_model(r: Run, models: Models) -> Models:
  trained = reward_model.run(
    r.setting,
    r.experiment.reward_model,
    models.policy,
    r.sources.given or r.sources.prompts,
    {} if r.sources.given else rules({"answer": 1.0}),
    r.workdir / "reward_model",
  )
  return models._replace(reward=trained)


def _preference(r: Run, models: Models) -> Models:
  e = r.experiment
  trained = preference.run(
    r.setting,
    e.preference,
    models.policy,
    models.reward,
    r.sources.given or r.sources.prompts,
    {} if r.sources.given else known(r.sources.prompts),
    r.workdir / "preference",
    first=2 * e.reward_model.collect.prompts,
  )
  return models._replace(policy=trained)


def _difficulty(r: Run, models: Models) -> Models:
  config, source = r.experiment.difficulty, r.sources.prompts
  terms = experiment.rewards(r.experiment)
  rule = terms["result" if "result" in terms else "answer"].reward
  folder = r.workdir / "difficulty"
  labelling.run(r.setting, config, models.policy, source, rule, folder)
  return models


def _labels(r: Run) -> list[difficulty.Label]:
  return difficulty.read_labels(r.workdir / "difficulty" / labelling.LABELS)


def _fits(setting: Setting, label: difficulty.Label) -> bool:
  """Whether a trace has room; that of an answer cut off has none to end."""
  drawn = label.trace.removeprefix(setting.layout.prefix)
  ids = tok.completion_ids(setting.tokenizer, drawn)
  return len(ids) <= setting.layout.completion_tokens


def _cold_start(r: Run, models: Models) -> Models:
  config, folder = r.experiment.cold_start, r.workdir / "cold_start"
  labels = _labels(r)
  whole = [label for label in labels if _fits(r.setting, label)]
  if len(whole) < len(labels):
    logging.warning(
      "%d of %d traces are longer than config.data.completion_tokens and are "
      "left out",
      len(labels) - len(whole),
      len(labels),
    )
  source = difficulty.Traced(r.sources.prompts, whole)
  trained = sft.run(r.setting, config, models.policy, source, folder)
  return models._replace(policy=trained)


def _policy(r: Run, models: Models) -> Models:
  e, source = r.experiment, r.sources.prompts
  if "difficulty" in e.stages:
    source = difficulty.hard(source, _labels(r), e.difficulty.fewest)
  trained = policy.run(
    r.setting,
    e.policy,
    models.policy,
    source,
    experiment.rewards(e),
    r.workdir / "policy",
    reward=models.reward,
    probe=make_probe(r) if e.policy.probe_every else None,
  )
  return models._replace(policy=trained)


STAGES: dict[str, Stage] = {
  "assemble": _assemble,
  "sft": _sft,
  "difficulty": _difficulty,
  "cold_start": _cold_start,
  "reward_model": _reward_model,
  "preference": _preference,
  "policy": _policy,
}


def known(source: Source) -> dict[str, Term]:
  """The rules that a source has the truth for."""
  named = bool(source[0].facts)
  return {n: t for n, t in REWARDS.items() if named or t.truth != "facts"}


def rules(weights: Mapping[str, float]) -> dict[str, Term]:
  """The named rules of the reward with their weights."""
  return {n: REWARDS[n]._replace(weight=w) for n, w in weights.items()}


def run(e: Experiment, workdir: Path) -> dict[str, Any]:
  """Runs all stages, or what is left of them, and returns the summary."""
  sizes = e.mesh.data, e.mesh.fsdp, e.mesh.tensor
  mesh = sharding.make_mesh(*sizes, sequence=e.mesh.sequence)
  check_stages(e)
  preflight.check_config(e, mesh.shape["data"] * mesh.shape["fsdp"])
  preflight.claim(workdir, e)
  told = summary.read(workdir)
  preflight.check_endpoints(e, told["stages"])
  setting = inputs.make_setting(e, mesh)
  opened = inputs.open_sources(e, setting, workdir)
  with jax.set_mesh(mesh):
    preflight.check_facts(e, opened.prompts)
    r = Run(e, setting, opened, workdir)
    measure = make_measure(r)
    shapes = weights.shapes(e)
    preflight.check_optimizers(e, shapes)
    preflight.check_disk(e, workdir, shapes, told["stages"])
    models = Models(policy=weights.initial(e, mesh))
    for name in e.stages:
      models = STAGES[name](r, models)
      if name not in told["stages"]:
        # The stage that trains nothing is told by what it found.
        labels = _labels(r) if name == "difficulty" else None
        found = difficulty.shares(labels) if labels else measure(name, models)
        told["stages"][name] = summary.describe_stage(workdir / name, found)
        summary.write(workdir, told)
  _show(told, workdir)
  return told


def _show(told: dict[str, Any], workdir: Path) -> None:
  """Prints the summary, and where there is more to look at."""
  summary.show(told, workdir)
  skipped = inputs.skipped(workdir)
  if bad := skipping.read(skipped):
    print(f"{len(bad)} bad records were passed over: {skipped}")
  if jax.process_index() == 0:
    print(f"To look at: {report.write(workdir)}")


def make_probe(r: Run) -> Callable[[Params], dict[str, float]]:
  """What is measured during the policy stage, on one batch of held-out
  questions: the share answered right, and how many without looking."""
  config = r.experiment.evaluation
  small = dataclasses.replace(config, size=config.batch)
  terms = rules({"answer": 1.0})
  evaluate = make_evaluator(r.setting, small, r.sources.held_out, terms)
  blindness = _make_blindness(r)
  return lambda params: (
    {"held_out_accuracy": evaluate(params)["answer"]} | blindness(params)
  )


def _make_blindness(r: Run) -> Callable[[Params], dict[str, float]]:
  """How far a policy answers without looking, on a batch of held-out
  questions."""
  sizes = r.experiment.evaluation.batch, r.experiment.evaluation.micro_batch
  return make_blindness(r.setting, r.sources.held_out, *sizes)


def make_measure(r: Run) -> Callable[[str, Models], dict[str, float]]:
  """A function that measures the models after a stage on held-out questions;
  the reward model once, after its own."""
  e = r.experiment
  if e.judging:
    judge = make_judging(r.setting, e.judging, r.sources.held_out)
    return lambda stage, models: judge(models.policy)
  evaluate = make_evaluator(
    r.setting, e.evaluation, r.sources.held_out, known(r.sources.held_out)
  )
  blindness = _make_blindness(r)

  def measure(stage: str, models: Models) -> dict[str, float]:
    held = evaluate(models.policy)
    found = {"accuracy": held.pop("answer")} | held | blindness(models.policy)
    if stage == "reward_model":
      found["pair_accuracy"] = reward_model.pair_accuracy(
        r.setting,
        e.reward_model,
        models.policy,
        models.reward,
        r.sources.held_out,
        rules({"answer": 1.0}),
        r.workdir / "reward_model",
      )
    return found

  return measure


# (stage, one that uses what it makes)
_BEFORE = (
  ("difficulty", "cold_start"),
  ("difficulty", "policy"),
  ("reward_model", "preference"),
  ("reward_model", "policy"),
)


def check_stages(e: Experiment) -> None:
  """Raises InputError if the config asks for a stage that does not exist."""
  for name in e.stages:
    if name not in STAGES:
      known = ", ".join(STAGES)
      raise InputError(f"config.stages has '{name}'; known are {known}")
  if "assemble" in e.stages[1:]:
    raise InputError(
      "config.stages has 'assemble' behind stages whose weights it would "
      "replace; put it first"
    )
  if "cold_start" in e.stages and "difficulty" not in e.stages:
    raise InputError(
      "config.stages has 'cold_start' and not 'difficulty', which finds what "
      "it learns from; add it"
    )
  for maker, user in _BEFORE:
    if maker in e.stages and user in e.stages[: e.stages.index(maker)]:
      raise InputError(
        f"config.stages has '{user}' before '{maker}', which makes what it "
        "uses; exchange them"
      )
