"""What a run depends on: its config, and the folder that belongs to it."""

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from jaxrl_mm import metrics
from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate.accuracy import EvaluationConfig
from jaxrl_mm.evaluate.judging import JudgingConfig
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.lora import LoraConfig
from jaxrl_mm.rewards import consistency, hallucination, r1_reward
from jaxrl_mm.rewards import format as form
from jaxrl_mm.rewards import math as maths
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.rewards.endpoint import Endpoint
from jaxrl_mm.rewards.judge import InProcess
from jaxrl_mm.sampling.weights import FORMS
from jaxrl_mm.train import assemble, policy
from jaxrl_mm.train.assemble import AssembleConfig
from jaxrl_mm.train.difficulty import DifficultyConfig
from jaxrl_mm.train.loop import LoopConfig
from jaxrl_mm.train.policy import PolicyConfig
from jaxrl_mm.train.preference import PreferenceConfig
from jaxrl_mm.train.reward_model import RewardModelConfig
from jaxrl_mm.train.sft import SftConfig

# What is measured after each stage, and what the reward can be made of.
REWARDS = {
  "answer": Term(maths.exact),
  "format": Term(form.r1),
  "hallucination": Term(hallucination.false_claims, truth="facts"),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh axes; one may be -1, what is left.

  Attributes:
    data, fsdp, tensor: devices along each axis.
    sequence: devices that share the tokens of a row in training, for answers
      too long for one; each holds the keys of a layer whole while it attends.
    cpu_devices: without an accelerator, into how many devices the CPU is cut.
      Small models train fastest with one for each core.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  sequence: int = 1
  cpu_devices: int = 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where examples come from and the shapes they are brought to.

  Attributes:
    demonstrations: source of the cold start, see `sets.open_source`.
    labelled: digits whose labels the demonstrations may use; 0 for all.
    prompts: source of the policy stage.
    pairs: what the reward model and preference stages train on, see
      `sets.open_pairs`; empty makes pairs of the policy's own answers.
    skip_bad: records that cannot be read, or do not fit the lengths below, are
      passed over and named in skipped.0.jsonl (the number is the process's);
      else the first one ends the run, as a held-out one always does.
    tokenizer: folder of a tokenizer; empty takes that of the published
      checkpoint, or builds that of the digits.
    prompt_tokens, completion_tokens: see `loader.Layout`.
    max_pictures: pictures and videos of one prompt.
    max_tiles: of a picture, for InternVL towers; see `images.Tiles`.
    max_pixels: of a picture once it is resized, for Qwen2.5-VL; an image token
      takes 28 x 28.
    windows: room for the pictures of a prompt, for Qwen2.5-VL, see
      `patches.Patching`; 0 makes room for pictures up to four times as long as
      they are wide.
    frames: 2 for prompts with videos, for Qwen2.5-VL; they need `windows`.
    prefix: what every answer begins with, see `loader.Layout`.
  """

  demonstrations: str = "digits/train"
  labelled: int = 50
  prompts: str = "digits/train"
  pairs: str = ""
  skip_bad: bool = False
  tokenizer: str = ""
  prompt_tokens: int = 28
  completion_tokens: int = 14
  max_pictures: int = 1
  max_tiles: int = 3
  max_pixels: int = 28 * 28 * 1280
  windows: int = 0
  frames: int = 1
  prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything a run depends on.

  Attributes:
    seed: of weights, data order and sampling.
    stages: what is run, in order: names of `run.STAGES`.
    pretrained: folder of a published checkpoint to start from, as it is on
      the hub; empty starts from random weights.
    lora: adapters beside the weights, or None; a stage whose
      `optimizer.trainable` is ".*/lora_[ab]" trains them alone.
    difficulty: a teacher labels the prompts; the policy stage then trains on
      those it found hard.
    cold_start: on the teacher's right completions.
    consistency: whom the reward of that name asks; None takes the rule for
      analyses that say "response 1 is better".
    judging: measures a judge of two responses, in place of `evaluation`.
    profile_steps: "FIRST:LAST" steps of each stage that are traced for XProf;
      empty for none. It changes no number, so a run may go on with another.
  """

  model: ModelConfig
  pretrained: str = ""
  lora: LoraConfig | None = None
  seed: int = 0
  stages: tuple[str, ...] = ("sft", "policy")
  mesh: MeshConfig = MeshConfig()
  data: DataConfig = DataConfig()
  loop: LoopConfig = LoopConfig()
  assemble: AssembleConfig = AssembleConfig()
  sft: SftConfig = SftConfig()
  reward_model: RewardModelConfig = RewardModelConfig()
  preference: PreferenceConfig = PreferenceConfig()
  difficulty: DifficultyConfig = DifficultyConfig()
  cold_start: SftConfig = SftConfig()
  policy: PolicyConfig = PolicyConfig()
  consistency: Endpoint | None = None
  evaluation: EvaluationConfig = EvaluationConfig()
  judging: JudgingConfig | None = None
  profile_steps: str = ""


def to_config(experiment: Experiment) -> ml_collections.ConfigDict:
  """The form whose values the command line can change one by one."""
  return ml_collections.ConfigDict(dataclasses.asdict(experiment))


def is_run(folder: Path) -> bool:
  """Whether config.json is that of a run; published ones name their model."""
  try:
    return "stages" in json.loads((folder / "config.json").read_text())
  except (OSError, ValueError):
    return False


def read(workdir: Path) -> Experiment:
  """The experiment of a run, from its folder.

  Raises:
    InputError: the folder holds no run.
  """
  path = workdir / "config.json"
  try:
    values = json.loads(path.read_text())
  except (OSError, json.JSONDecodeError) as error:
    raise InputError(
      f"{workdir} is no folder of a run: {path} cannot be read ({error})"
    ) from error
  return _build(Experiment, values, "config")


def from_config(config: ml_collections.ConfigDict) -> Experiment:
  """Back to frozen dataclasses. Raises InputError on an unknown name."""
  return _build(Experiment, config.to_dict(), "config")


def _build(kind: Any, values: Any, where: str) -> Any:
  if isinstance(kind, types.UnionType):
    # Of several dataclasses, the one that has all these names.
    kinds = [k for k in kind.__args__ if dataclasses.is_dataclass(k)]
    fits = lambda k: (
      set(values or ()) <= {f.name for f in dataclasses.fields(k)}
    )
    plain = values is None or not kinds
    kind = None if plain else next(filter(fits, kinds), kinds[0])
  if not dataclasses.is_dataclass(kind):
    return tuple(values) if isinstance(values, list) else values
  hints = typing.get_type_hints(kind)
  unknown = set(values) - set(hints)
  if unknown:
    raise InputError(
      f"{where} has no '{sorted(unknown)[0]}'; it has {', '.join(hints)}"
    )
  return kind(
    **{k: _build(hints[k], v, f"{where}.{k}") for k, v in values.items()}
  )


def check(e: Experiment, shards: int) -> None:
  """Finds what does not divide, before anything is built.

  Args:
    e: the experiment.
    shards: parts the mesh cuts the batch axis into, data * fsdp.

  Raises:
    InputError: shows the arithmetic.
  """
  for name, total, divisor, part in _divisions(e, shards):
    if part < 1 or total < 1 or total % part:
      raise InputError(
        f"{name} ({total}) must be a multiple of {divisor} ({part})"
      )
  for name, count in _counts(e).items():
    if count < 1:
      raise InputError(f"{name} is {count}; it must be at least 1")
  for name, room, completions in _rooms(e):
    _check_room(e, name, room, completions)
  rewards(e)
  if "assemble" in e.stages:
    _check_assemble(e)
  if "difficulty" in e.stages and not {"result", "answer"} & {
    *e.policy.weights
  }:
    raise InputError(
      "config.policy.weights names neither 'result' nor 'answer', by which the "
      "difficulty stage grades; add one"
    )
  if "preference" in e.stages and "reward_model" not in e.stages:
    _check_unscored(e)
  if "policy" in e.stages:
    _check_policy(e)
    _check_learned(e)


def _rooms(e: Experiment) -> Iterator[tuple[str, int, int]]:
  """(name, tokens, completions of a row) of all that counts tokens."""
  for name in e.stages:
    if name in ("sft", "cold_start", "policy"):
      yield f"config.{name}", getattr(e, name).micro_tokens, 1
    if name in ("reward_model", "preference"):
      config = getattr(e, name)
      yield f"config.{name}", config.micro_tokens, 2
      yield f"config.{name}.collect", config.collect.micro_tokens, 1
  if "assemble" in e.stages:
    yield "config.assemble.align", e.assemble.align.micro_tokens, 1
    if e.assemble.text:
      yield "config.assemble.text", e.assemble.text.micro_tokens, 1


def _check_room(e: Experiment, name: str, room: int, completions: int) -> None:
  """Whether the longest row fits, and each is on one device."""
  prompt, answer = e.data.prompt_tokens, e.data.completion_tokens
  if not room:
    return
  if room < prompt + completions * answer:
    raise InputError(
      f"{name}.micro_tokens is {room} and one row can have {prompt} prompt_"
      f"tokens + {completions} * {answer} completion_tokens; raise it to "
      f"{prompt + completions * answer}, or set it to 0"
    )
  if e.mesh.sequence != 1:
    raise InputError(
      f"{name}.micro_tokens packs rows, and config.mesh.sequence is "
      f"{e.mesh.sequence}, which cuts them; set one of them to its default"
    )


def _check_unscored(e: Experiment) -> None:
  """Without a reward model all scores are equal."""
  if e.preference.threshold > 0:
    raise InputError(
      f"config.preference.threshold is {e.preference.threshold} and there is "
      "no reward model to score pairs; add 'reward_model' to config.stages, or "
      "set the threshold to 0"
    )


def _check_assemble(e: Experiment) -> None:
  """Where the language models come from, and that they keep their adapters."""
  assemble.check(e.assemble)
  if e.lora and (e.assemble.substitute or e.assemble.reasoner):
    raise InputError(
      "config.lora puts adapters into the run's own language model and "
      "config.assemble takes another from a folder; set config.lora to None"
    )


def _check_policy(e: Experiment) -> None:
  """The algorithm and the sampler."""
  policy.make_algorithm(e.policy, e.seed)
  name = e.policy.algorithm["name"]
  if e.policy.samples_per_prompt == 1 and name not in policy.WITHOUT_GROUPS:
    raise InputError(
      f"config.policy.samples_per_prompt is 1 and '{name}' compares the "
      "answers to a question, so nothing could be learned; raise it, or choose "
      f"one of {', '.join(policy.WITHOUT_GROUPS)}"
    )
  if e.policy.temperature <= 0:
    raise InputError(
      f"config.policy.temperature is {e.policy.temperature} and rollouts are "
      "drawn at random; set it above 0"
    )
  for name in ("cache", "decode_weights"):
    if (form := getattr(e.policy, name)) not in FORMS:
      raise InputError(
        f"config.policy.{name} is '{form}'; known are {', '.join(FORMS)}"
      )
  if not all(e.policy.stop):
    raise InputError("config.policy.stop has an empty string; take it out")


def _check_learned(e: Experiment) -> None:
  """The learned part of the reward, and what it needs."""
  learned = e.policy.learned
  if learned and "reward_model" not in e.stages:
    raise InputError(
      "config.policy.learned needs a reward model; add 'reward_model' to "
      "config.stages, or set config.policy.learned to None"
    )
  if learned and learned.band and learned.threshold is None:
    raise InputError(
      "config.policy.learned.band moves a threshold and there is none; set "
      "config.policy.learned.threshold"
    )
  if learned and learned.band and "hallucination" not in e.policy.weights:
    raise InputError(
      "config.policy.learned.band follows the hallucination rate; name "
      "'hallucination' in config.policy.weights, with weight 0 to only watch it"
    )


def profiled(e: Experiment) -> range:
  """The steps that are traced.

  Raises:
    InputError: `profile_steps` is not of its form.
  """
  if not e.profile_steps:
    return range(0)
  found = re.fullmatch(r"(\d+):(\d+)", e.profile_steps)
  if not found or not 1 <= int(found[1]) <= int(found[2]):
    raise InputError(
      f"config.profile_steps is '{e.profile_steps}'; it names the first and "
      "the last step to trace, such as 10:12"
    )
  return range(int(found[1]), int(found[2]) + 1)


def trainings(e: Experiment, stage: str) -> dict[str, tuple[Any, Any]]:
  """Every training of a stage: the name of its part ("" where there is one
  alone), and its optimizer's config with its number of steps."""
  of = lambda config: (config.optimizer, config.steps)
  if stage == "policy":
    return {"": (e.policy.optimizer, e.policy.updates)}
  if stage == "assemble":
    a = e.assemble
    texts = [n for n in ("substitute", "reasoner") if not getattr(a, n)]
    return {n: of(a.text) for n in texts} | {"align": of(a.align)}
  if stage == "reward_model":
    return {f"part_{n}": of(e.reward_model) for n in (1, 2)}
  if stage == "preference":
    rounds = range(1, e.preference.rounds + 1)
    return {f"round_{n}": of(e.preference) for n in rounds}
  return {} if stage == "difficulty" else {"": of(getattr(e, stage))}


def rewards(e: Experiment) -> dict[str, Term]:
  """The terms of the policy stage with their weights.

  Raises:
    InputError: there is no term of that name.
  """
  judge = e.consistency or InProcess(consistency.by_rule)
  known = REWARDS | r1_reward.terms(judge)
  for name in e.policy.weights:
    if name not in known:
      raise InputError(
        f"config.policy.weights has '{name}'; known are {', '.join(known)}"
      )
  return {n: known[n]._replace(weight=w) for n, w in e.policy.weights.items()}


def _divisions(
  e: Experiment, shards: int
) -> Iterator[tuple[str, int, str, int]]:
  """(name, number, name of its divisor, divisor) of all that must divide."""
  cut = f"the {shards} row shards of config.mesh"
  size, batch = e.evaluation.size, e.evaluation.batch
  length = e.data.prompt_tokens + e.data.completion_tokens
  if e.mesh.sequence > 0:
    cuts = "config.mesh.sequence", e.mesh.sequence
    yield "config.data.prompt_tokens + completion_tokens", length, *cuts
  yield "config.evaluation.size", size, "its batch", batch
  yield "config.evaluation.batch", batch, cut, shards
  yield (
    f"the rows of one shard, {batch} evaluation.batch / {shards} shards",
    batch // shards,
    "config.evaluation.micro_batch",
    min(e.evaluation.micro_batch, batch // shards),
  )
  for name in e.stages:
    if name in ("sft", "cold_start", "reward_model", "preference"):
      yield from _batch_divisions(name, getattr(e, name), shards)
    if name in ("reward_model", "preference"):
      c, where = getattr(e, name).collect, f"config.{name}.collect"
      yield f"{where}.prompts", c.prompts, "its batch", c.prompts_per_step
      yield f"{where}.prompts_per_step", c.prompts_per_step, cut, shards
      rows = c.prompts_per_step * c.samples_per_prompt // shards
      if not c.micro_tokens:
        yield (
          f"the rows of one shard, {c.prompts_per_step} prompts_per_step * "
          f"{c.samples_per_prompt} samples_per_prompt / {shards} shards",
          rows,
          f"{where}.micro_batch",
          min(c.micro_batch, rows),
        )
  if "assemble" in e.stages:
    parts = {"text": e.assemble.text, "align": e.assemble.align}
    for name, part in parts.items():
      if part:
        yield from _batch_divisions(f"assemble.{name}", part, shards)
  if "difficulty" in e.stages:
    yield "config.difficulty.batch", e.difficulty.batch, cut, shards
  if e.judging:
    yield "config.judging.batch", e.judging.batch, cut, shards
  if "policy" in e.stages:
    p = e.policy
    capacity = p.algorithm.get("capacity", shards)
    yield "config.policy.prompts_per_step", p.prompts_per_step, cut, shards
    rows = (
      f"{p.prompts_per_step} prompts_per_step * {p.samples_per_prompt} "
      f"samples_per_prompt / {shards} shards"
    )
    several = p.updates_per_rollout
    if several != 1:
      updates = "config.policy.updates_per_rollout"
      yield f"the rows of one shard, {rows}", p.rows // shards, updates, several
      rows += f" / {several} updates_per_rollout"
    size = p.rows // shards // max(several, 1)
    if not p.micro_tokens:
      yield (
        f"the rows of one shard, {rows}",
        size,
        "config.policy.micro_batch",
        min(p.micro_batch, size),
      )
    yield "config.policy.algorithm.capacity", capacity, cut, shards
    if p.pool:
      asked = "config.policy.prompts_per_step"
      yield "config.policy.pool", p.pool, asked, p.prompts_per_step


def _batch_divisions(
  name: str, config: Any, shards: int
) -> Iterator[tuple[str, int, str, int]]:
  """The arithmetic of a stage that reads `batch` rows an update."""
  rows = config.batch // shards
  cut = f"the {shards} row shards of config.mesh"
  yield f"config.{name}.batch", config.batch, cut, shards
  if not config.micro_tokens:
    yield (
      f"the rows of one shard, {config.batch} {name}.batch / {shards} shards",
      rows,
      f"config.{name}.micro_batch",
      min(config.micro_batch, rows),
    )


def _counts(e: Experiment) -> dict[str, int]:
  """All that is counted, and not by zero."""
  return {
    "config.sft.steps": e.sft.steps,
    "config.reward_model.steps": e.reward_model.steps,
    "config.preference.steps": e.preference.steps,
    "config.preference.rounds": e.preference.rounds,
    "config.difficulty.questions": e.difficulty.questions,
    "config.difficulty.attempts": e.difficulty.attempts,
    "config.cold_start.steps": e.cold_start.steps,
    "config.policy.steps": e.policy.steps,
    "config.policy.updates_per_rollout": e.policy.updates_per_rollout,
    "config.policy.samples_every": e.policy.samples_every,
    "config.loop.save_every": e.loop.save_every,
    "config.loop.max_bad_steps": e.loop.max_bad_steps,
  }


# What a run may go on with: where it runs, how it saves, what is watched.
_MAY_CHANGE = ("mesh.", "loop.", "profile_steps")


def _has_begun(folder: Path) -> bool:
  """Whether a stage holds what another config would not have made.

  Answers it has collected say themselves what they are answers to.
  """
  labelled = (folder / "labels.jsonl").exists()
  saves = folder.glob("**/checkpoints/*")
  return labelled or any(path.name.isdigit() for path in saves)


def claim_folder(workdir: Path, experiment: Experiment) -> None:
  """Writes config.json, or checks that the folder belongs to this config.

  The settings of stages that have saved nothing yet may change.

  Raises:
    InputError: the folder is another run's, or cannot be written.
  """
  if ":/" in str(workdir):
    raise InputError(
      f"--workdir={workdir} is no folder; mount the bucket and name its folder"
    )
  text = json.dumps(dataclasses.asdict(experiment), indent=2)
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists():
      _check_same(workdir, json.loads(path.read_text()), json.loads(text))
    metrics.write_text(path, text)
  except (OSError, json.JSONDecodeError) as error:
    raise InputError(f"cannot use the folder {workdir}: {error}") from error


def _check_same(workdir: Path, there: Any, here: Any) -> None:
  """Raises InputError if what has been done would not be done so again."""
  ahead = [n for n in there.get("stages", ()) if not _has_begun(workdir / n)]
  free = (*_MAY_CHANGE, *(f"{name}." for name in ahead))
  other, mine = _flat(there), _flat(here)
  changed = [
    f"{k} is {other.get(k)} there and {mine.get(k)} here"
    for k in sorted(other.keys() | mine.keys())
    if other.get(k) != mine.get(k) and not k.startswith(free)
  ]
  if changed:
    raise InputError(
      f"{workdir} holds a run of another config ({'; '.join(changed[:3])}); "
      "choose another --workdir"
    )


def unwritable(workdir: Path, process: int) -> str:
  """Why a process cannot write to the folder of the run; "" if it can."""
  if not (workdir / "config.json").exists():
    return (
      f"process {process} does not see what the first wrote to {workdir}; name "
      "a --workdir that all hosts share, such as a mounted bucket"
    )
  path = workdir / f".write_test.{process}"
  try:
    path.write_text("x")
    path.unlink()
  except OSError as error:
    return f"cannot write to {workdir}: {error}; choose another --workdir"
  return ""


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  parts = [_flat(v, f"{prefix}.{k}" if prefix else k) for k, v in tree.items()]
  return {k: v for part in parts for k, v in part.items()}
