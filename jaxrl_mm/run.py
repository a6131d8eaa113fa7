"""A run: stage after stage, from its config to its summary.

A stage is a function from the models so far to the models after it. One that
is finished gives back its weights from its checkpoints, so a run that is
started again walks through all its stages.
"""

import dataclasses
import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxrl_mm import experiment, report, sharding, summary, weights
from jaxrl_mm.data import (
  comparisons,
  difficulty,
  loader,
  pairs,
  patches,
  sets,
  skipping,
  sources,
  templates,
)
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.images import Tiles
from jaxrl_mm.data.loader import Layout
from jaxrl_mm.data.pairs import Given
from jaxrl_mm.data.patches import Patching
from jaxrl_mm.data.skipping import Sound
from jaxrl_mm.data.sources import Source
from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate.accuracy import make_evaluator
from jaxrl_mm.evaluate.blindness import make_blindness
from jaxrl_mm.evaluate.judging import make_judging
from jaxrl_mm.experiment import REWARDS, DataConfig, Experiment
from jaxrl_mm.models.config import ModelConfig, QwenVisionConfig
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.optimizer import make_optimizer, split_trainable
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.rewards.endpoint import Endpoint
from jaxrl_mm.rewards.judge import JudgeDown
from jaxrl_mm.train import assemble, policy, preference, reward_model, sft
from jaxrl_mm.train import difficulty as labelling
from jaxrl_mm.train.loop import Setting

_ENDLESS = 1 << 30


class Sources(NamedTuple):
  """Questions of a run, and pairs; see `DataConfig` and `EvaluationConfig`."""

  held_out: Source
  demonstrations: Source
  prompts: Source
  given: Given | None = None


class Run(NamedTuple):
  """What the stages of a run share.

  Attributes:
    experiment: the config.
    setting: tokenizer, shapes and mesh.
    sources: of questions.
    probe: measures how far a policy answers without looking.
    workdir: folder of the run.
  """

  experiment: Experiment
  setting: Setting
  sources: Sources
  probe: Callable[[Params], dict[str, float]]
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
  ids = tok.completion_ids(setting.tokenizer, label.trace)
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
    probe=make_probe(r),
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
  experiment.check(e, mesh.shape["data"] * mesh.shape["fsdp"])
  claim(workdir, e)
  told = summary.read(workdir)
  check_endpoints(e, told["stages"])
  setting = make_setting(e, mesh)
  opened = open_sources(e, setting, workdir)
  with jax.set_mesh(mesh):
    check_facts(e, opened.prompts)
    sizes = e.evaluation.batch, e.evaluation.micro_batch
    probe = make_blindness(setting, opened.held_out, *sizes)
    r = Run(e, setting, opened, probe, workdir)
    measure = make_measure(r)
    shapes = weights.shapes(e)
    check_optimizers(e, shapes)
    check_room(e, workdir, shapes, told["stages"])
    models = Models(policy=weights.initial(e, mesh))
    for name in e.stages:
      models = STAGES[name](r, models)
      if name not in told["stages"]:
        # The stage that trains nothing is told by what it found.
        labels = _labels(r) if name == "difficulty" else None
        found = difficulty.shares(labels) if labels else measure(name, models)
        told["stages"][name] = summary.describe_stage(workdir / name, found)
        summary.write(workdir, told)
  summary.show(told, workdir)
  if bad := skipping.read(_skipped(workdir)):
    print(f"{len(bad)} bad records were passed over: {_skipped(workdir)}")
  if jax.process_index() == 0:
    print(f"To look at: {report.write(workdir)}")
  return told


def claim(workdir: Path, e: Experiment) -> None:
  """Makes the folder this run's, on the first process; all see it.

  Raises:
    InputError: see `claim_folder`; or a process cannot write there, or sees
      another folder of that name.
  """
  problem = ""
  if jax.process_index() == 0:
    try:
      experiment.claim_folder(workdir, e)
    except InputError as error:
      problem = str(error)
  problem = sharding.of_first_process(problem)
  problem = problem or experiment.unwritable(workdir, jax.process_index())
  if sharding.sum_over_processes(float(bool(problem))):
    raise InputError(
      problem or f"another process cannot use {workdir}; its message says why"
    )


def check_endpoints(e: Experiment, done: Collection[str]) -> None:
  """Asks the models that a stage to come will ask, each once.

  Args:
    e: the experiment.
    done: stages that will not ask again.

  Raises:
    InputError: one of them does not answer.
  """
  problem = ""
  if jax.process_index() == 0:
    for name, endpoint in _endpoints(e, done).items():
      try:
        dataclasses.replace(endpoint, retries=0)(["Say 1."])
      except JudgeDown as error:
        problem = problem or f"config.{name}: {error}"
  if problem := sharding.of_first_process(problem):
    raise InputError(problem)


def _endpoints(e: Experiment, done: Collection[str]) -> dict[str, Endpoint]:
  """Those of the stages to come, by their place in the config."""
  left, asked = set(e.stages) - set(done), {}
  if "difficulty" in left and e.difficulty.teacher.base_url:
    asked["difficulty.teacher"] = e.difficulty.teacher
  if "policy" in left and e.consistency and "consistency" in e.policy.weights:
    asked["consistency"] = e.consistency
  return asked


def check_room(
  e: Experiment, workdir: Path, params: Params, done: Collection[str]
) -> None:
  """Raises InputError if the disk is too full for the checkpoints to come.

  Args:
    e: the experiment.
    workdir: folder of the run.
    params: weights or shapes; a stage saves those it trains, with two moments
      each, and the policy stage the replay buffer. An old checkpoint goes when
      a new one is whole, so while it is written there is one more.
    done: stages that will not save again.
  """
  sizes = [0]
  for name in e.stages:
    memory = _bytes(_memory(e)) if name == "policy" else 0
    for optimizer, _ in experiment.trainings(e, name).values():
      trained, _ = split_trainable(optimizer, params)
      moments = sum(8 * x.size for x in jax.tree.leaves(trained))
      size = _bytes(trained) + moments + memory
      sizes += [] if name in done else [size]
  need = e.loop.keep * sum(sizes) + max(sizes)
  free = shutil.disk_usage(workdir).free
  if free < need:
    raise InputError(
      f"the checkpoints of this run take about {need / 1e9:.1f} GB and "
      f"{workdir} has {free / 1e9:.1f} GB left; free some, choose another "
      "--workdir, or lower config.loop.keep"
    )


def _bytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _memory(e: Experiment) -> Any:
  """Shapes of what the algorithm remembers: the rows of a replay buffer."""
  terms = list(experiment.rewards(e))
  rows = policy.trajectory_shapes(make_layout(e), e.policy, terms)
  transform = policy.make_algorithm(e.policy, e.seed).transform
  return jax.eval_shape(transform.init, rows)


def make_probe(r: Run) -> Callable[[Params], dict[str, float]]:
  """What is measured during the policy stage, on one batch of held-out
  questions: the share answered right, and how many without looking."""
  config = r.experiment.evaluation
  small = dataclasses.replace(config, size=config.batch)
  terms = rules({"answer": 1.0})
  evaluate = make_evaluator(r.setting, small, r.sources.held_out, terms)
  return lambda params: (
    {"held_out_accuracy": evaluate(params)["answer"]} | r.probe(params)
  )


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

  def measure(stage: str, models: Models) -> dict[str, float]:
    held = evaluate(models.policy)
    found = {"accuracy": held.pop("answer")} | held | r.probe(models.policy)
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


def check_facts(e: Experiment, prompts: Source) -> None:
  """Raises InputError if a threshold would follow a rate nobody can count."""
  bands = {"preference": e.preference.band}
  if e.policy.learned:
    bands["policy"] = e.policy.learned.band
  for stage, band in bands.items():
    if stage in e.stages and band and not prompts[0].facts:
      raise InputError(
        f"config.{stage} has a band for the hallucination rate and "
        f"{e.data.prompts} does not say what is in its pictures; add 'facts' "
        "to its records, or set the band to None"
      )


def check_optimizers(e: Experiment, params: Params) -> None:
  """Finds a stage's wrong schedule or pattern before the first one trains."""
  for name in e.stages:
    for optimizer, steps in experiment.trainings(e, name).values():
      make_optimizer(optimizer, steps)
      split_trainable(optimizer, params)


def make_setting(e: Experiment, mesh: jax.sharding.Mesh) -> Setting:
  """Tokenizer, shapes and mesh, checked against the model."""
  folder = e.data.tokenizer or e.pretrained
  pairs = e.data.prompts.startswith(comparisons.DIGIT_PAIRS)
  texts = comparisons.digit_pair_texts() if pairs else sources.digits_texts()
  tokenizer = tok.load(folder) if folder else tok.build(texts)
  if len(tokenizer) > e.model.decoder.vocab:
    raise InputError(
      f"the tokenizer has {len(tokenizer)} entries and config.model.decoder."
      f"vocab is {e.model.decoder.vocab}; use the model's own tokenizer"
    )
  layout = make_layout(e)
  return Setting(
    model=e.model,
    tokenizer=tokenizer,
    image_token=templates.image_token(tokenizer, layout.markup),
    layout=layout,
    mesh=mesh,
    loop=e.loop,
    seed=e.seed,
    profile=experiment.profiled(e),
  )


def make_layout(e: Experiment) -> Layout:
  """The shapes of prompts, and of pictures where the model sees any."""
  vision, data = e.model.vision, e.data
  layout = partial(
    Layout, data.prompt_tokens, data.completion_tokens, prefix=data.prefix
  )
  if vision is None:
    return layout(pictures=None, markup=templates.TEXT)
  if isinstance(vision, QwenVisionConfig):
    return layout(pictures=make_patching(e.model, data), markup=templates.QWEN)
  tiles = Tiles(
    max_tiles=data.max_tiles,
    image_size=vision.image_size,
    tokens=(vision.side // e.model.shuffle) ** 2,
    max_pictures=data.max_pictures,
  )
  return layout(pictures=tiles)


def make_patching(model: ModelConfig, data: DataConfig) -> Patching:
  """How the pictures of a Qwen2.5-VL are cut.

  Raises:
    InputError: a patch would hold another number of frames than the tower
      takes.
  """
  vision = model.vision
  if data.frames not in (1, vision.frames):
    raise InputError(
      f"config.data.frames is {data.frames}; set it to 1 for pictures alone or "
      f"to {vision.frames}, the frames of a patch, for videos"
    )
  token = vision.patch_size * model.shuffle
  enough = patches.enough_windows(
    data.max_pixels // token**2, vision.window // model.shuffle
  )
  return Patching(
    windows=data.windows or data.max_pictures * enough,
    max_pictures=data.max_pictures,
    min_pixels=min(patches.MIN_PIXELS, data.max_pixels),
    max_pixels=data.max_pixels,
    frames=data.frames,
    patch_size=vision.patch_size,
    window=vision.window,
    shuffle=model.shuffle,
    tower_frames=vision.frames,
  )


def open_sources(e: Experiment, setting: Setting, workdir: Path) -> Sources:
  """Held-out questions, demonstrations, prompts; all opened before training.

  Seeds differ, so that the prompts are other pictures than the
  demonstrations; held-out questions are the same for every seed.
  """
  demonstrations = sets.open_source(
    e.data.demonstrations,
    size=_ENDLESS,
    seed=2 * e.seed,
    labelled=e.data.labelled,
  )
  if "sft" in e.stages:
    sources.check_demonstrations(demonstrations)
  prompts = sets.open_source(e.data.prompts, size=_ENDLESS, seed=2 * e.seed + 1)
  imitated = {"sft", "assemble"} & set(e.stages)
  encode = loader.encode_demonstration if imitated else loader.encode_prompt
  sound = partial(_sound, e, setting, workdir)
  return Sources(
    _open_held_out(e),
    sound(demonstrations, e.data.demonstrations, encode),
    sound(prompts, e.data.prompts, loader.encode_prompt),
    _open_given(e, sound),
  )


def _open_given(e: Experiment, sound) -> Given | None:
  if not e.data.pairs:
    return None
  opened = sets.open_pairs(e.data.pairs, size=_ENDLESS, seed=2 * e.seed + 1)
  return Given(sound(opened, e.data.pairs, pairs.encode_given))


def _sound(e, setting, workdir, source, name, encode):
  """The source as it is, or without the records that cannot be encoded."""
  if not e.data.skip_bad:
    return source
  fits = lambda record: encode(record, 0, setting.tokenizer, setting.layout)
  return Sound(source, fits, skipping.make_tell(_skipped(workdir), name))


def _skipped(workdir: Path) -> Path:
  """Every process names the bad records it has met."""
  return workdir / f"skipped.{jax.process_index()}.jsonl"


def _open_held_out(e: Experiment) -> Source:
  """The same for every seed."""
  if e.judging:
    return sets.open_source(
      e.judging.source, size=e.judging.pairs, seed=0, both_orders=True
    )
  held_out = sets.open_source(
    e.evaluation.source, size=e.evaluation.size, seed=0
  )
  if len(held_out) < e.evaluation.size:
    raise InputError(
      f"config.evaluation.size is {e.evaluation.size} and "
      f"{e.evaluation.source} has {len(held_out)} records"
    )
  return held_out
