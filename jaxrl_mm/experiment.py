"""What a run depends on: its config, and the folder that belongs to it."""

import dataclasses
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

import ml_collections

from jaxrl_mm import metrics, pytree
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
      They share the weights as those along fsdp do.
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
  differ = pytree.differences(there, here)
  changed = [
    words for name, words in differ.items() if not name.startswith(free)
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
