"""A run: from its config to its summary, stage after stage."""

import dataclasses
import json
import statistics
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from jaxrl_mm import metrics, sharding
from jaxrl_mm.data import sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.images import Tiles
from jaxrl_mm.data.loader import Layout
from jaxrl_mm.data.sources import Source
from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate.accuracy import EvaluationConfig, make_evaluator
from jaxrl_mm.models import lora, vlm
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.lora import LoraConfig
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.optimizer import make_optimizer, split_trainable
from jaxrl_mm.rewards import format as form
from jaxrl_mm.rewards import math as maths
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.train import policy, sft
from jaxrl_mm.train.loop import LoopConfig, Setting
from jaxrl_mm.train.policy import PolicyConfig
from jaxrl_mm.train.sft import SftConfig

REWARDS = {"answer": maths.exact, "format": form.r1}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh axes; one may be -1, what is left.

  Attributes:
    data, fsdp, tensor: devices along each axis.
    cpu_devices: without an accelerator, into how many devices the CPU is cut.
      Small models train fastest with one for each core.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  cpu_devices: int = 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where examples come from and the shapes they are brought to.

  Attributes:
    demonstrations: source of the cold start, see `sources.open_source`.
    labelled: digits whose labels the demonstrations may use; 0 for all.
    prompts: source of the policy stage.
    tokenizer: folder of a tokenizer; empty builds that of the digits.
    prompt_tokens, completion_tokens, max_tiles: see `loader.Layout`.
  """

  demonstrations: str = "digits/train"
  labelled: int = 50
  prompts: str = "digits/train"
  tokenizer: str = ""
  prompt_tokens: int = 28
  completion_tokens: int = 14
  max_tiles: int = 3


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything a run depends on.

  Attributes:
    seed: of weights, data order and sampling.
    stages: what is run, in order: "sft", "policy".
    lora: adapters beside the weights, or None; a stage whose
      `optimizer.trainable` is ".*/lora_[ab]" trains them alone.
  """

  model: ModelConfig
  lora: LoraConfig | None = None
  seed: int = 0
  stages: tuple[str, ...] = ("sft", "policy")
  mesh: MeshConfig = MeshConfig()
  data: DataConfig = DataConfig()
  loop: LoopConfig = LoopConfig()
  sft: SftConfig = SftConfig()
  policy: PolicyConfig = PolicyConfig()
  evaluation: EvaluationConfig = EvaluationConfig()


def to_config(experiment: Experiment) -> ml_collections.ConfigDict:
  """The form whose values the command line can change one by one."""
  return ml_collections.ConfigDict(dataclasses.asdict(experiment))


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
    kind = next(filter(fits, kinds), kinds[0]) if values is not None else None
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
  cut, p = f"the {shards} row shards of config.mesh", e.policy
  shard_rows = (
    f"the rows of one shard, {p.prompts_per_step} prompts_per_step * "
    f"{p.samples_per_prompt} samples_per_prompt / {shards} shards"
  )
  rules = [
    (
      "config.evaluation.size",
      e.evaluation.size,
      "its batch",
      e.evaluation.batch,
    ),
    ("config.evaluation.batch", e.evaluation.batch, cut, shards),
  ]
  if "sft" in e.stages:
    rules += [
      ("config.sft.batch", e.sft.batch, cut, shards),
      (
        f"the rows of one shard, {e.sft.batch} sft.batch / {shards} shards",
        e.sft.batch // shards,
        "config.sft.micro_batch",
        min(e.sft.micro_batch, e.sft.batch // shards),
      ),
    ]
  if "policy" in e.stages:
    capacity = p.algorithm.get("capacity", shards)
    rules += [
      ("config.policy.prompts_per_step", p.prompts_per_step, cut, shards),
      (
        shard_rows,
        p.rows // shards,
        "config.policy.micro_batch",
        min(p.micro_batch, p.rows // shards),
      ),
      ("config.policy.algorithm.capacity", capacity, cut, shards),
    ]
  for name, total, divisor, part in rules:
    if part < 1 or total < 1 or total % part:
      raise InputError(
        f"{name} ({total}) must be a multiple of {divisor} ({part})"
      )
  counts = {
    "config.sft.steps": e.sft.steps,
    "config.policy.steps": p.steps,
    "config.policy.samples_every": p.samples_every,
    "config.loop.save_every": e.loop.save_every,
    "config.loop.max_bad_steps": e.loop.max_bad_steps,
  }
  for name, count in counts.items():
    if count < 1:
      raise InputError(f"{name} is {count}; it must be at least 1")
  for name in e.stages:
    if name not in ("sft", "policy"):
      raise InputError(f"config.stages has '{name}'; known are sft, policy")
  for name in p.weights:
    if name not in REWARDS:
      known = ", ".join(REWARDS)
      raise InputError(f"config.policy.weights has '{name}'; known are {known}")
  policy.make_algorithm(p, e.seed)


def claim_folder(workdir: Path, experiment: Experiment) -> None:
  """Writes config.json, or checks that the folder belongs to this config.

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
    if not path.exists():
      metrics.write_text(path, text)
      return
    other = _flat(json.loads(path.read_text()))
  except (OSError, json.JSONDecodeError) as error:
    raise InputError(f"cannot use the folder {workdir}: {error}") from error
  mine = _flat(json.loads(text))
  changed = [
    f"{k} is {other.get(k)} there and {mine.get(k)} here"
    for k in sorted(other.keys() | mine.keys())
    if other.get(k) != mine.get(k)
  ]
  if changed:
    raise InputError(
      f"{workdir} holds a run of another config ({'; '.join(changed[:3])}); "
      "choose another --workdir"
    )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  parts = [_flat(v, f"{prefix}.{k}" if prefix else k) for k, v in tree.items()]
  return {k: v for part in parts for k, v in part.items()}


def run(experiment: Experiment, workdir: Path) -> dict[str, Any]:
  """Runs all stages, or what is left of them, and returns the summary."""
  e = experiment
  mesh = sharding.make_mesh(e.mesh.data, e.mesh.fsdp, e.mesh.tensor)
  check(e, mesh.shape["data"] * mesh.shape["fsdp"])
  claim_folder(workdir, e)
  setting = make_setting(e, mesh)
  held_out, demonstrations, prompts = open_sources(e)
  terms = {
    n: Term(REWARDS[n], weight) for n, weight in e.policy.weights.items()
  }
  graders = {name: Term(reward) for name, reward in REWARDS.items()}
  with jax.set_mesh(mesh):
    evaluate = make_evaluator(setting, e.evaluation, held_out, graders)
    params = init_params(e, mesh)
    for config in (getattr(e, name) for name in e.stages):
      make_optimizer(config.optimizer, config.steps)  # or its mistake
      split_trainable(config.optimizer, params)
    summary = read_summary(workdir)
    # A finished stage gives back its weights: later ones may train only some.
    for name in e.stages:
      folder = workdir / name
      if name == "sft":
        params = sft.run(setting, e.sft, params, demonstrations, folder)
      else:
        params = policy.run(setting, e.policy, params, prompts, terms, folder)
      if name not in summary["stages"]:
        held = evaluate(params)
        summary["stages"][name] = describe_stage(folder, held)
        write_summary(workdir, summary)
  show(summary, workdir)
  return summary


def make_setting(e: Experiment, mesh: jax.sharding.Mesh) -> Setting:
  """Tokenizer, shapes and mesh, checked against the model."""
  tokenizer = (
    tok.load(e.data.tokenizer)
    if e.data.tokenizer
    else tok.build(sources.digits_texts())
  )
  if len(tokenizer) > e.model.decoder.vocab:
    raise InputError(
      f"the tokenizer has {len(tokenizer)} entries and config.model.decoder."
      f"vocab is {e.model.decoder.vocab}; use the model's own tokenizer"
    )
  return Setting(
    model=e.model,
    tokenizer=tokenizer,
    image_token=tok.token_id(tokenizer, tok.IMAGE_TOKEN),
    layout=Layout(
      prompt_tokens=e.data.prompt_tokens,
      completion_tokens=e.data.completion_tokens,
      pictures=Tiles(
        max_tiles=e.data.max_tiles,
        image_size=e.model.vision.image_size,
        tokens=(e.model.vision.side // e.model.shuffle) ** 2,
      ),
    ),
    mesh=mesh,
    loop=e.loop,
    seed=e.seed,
  )


def open_sources(e: Experiment) -> tuple[Source, Source, Source]:
  """Held-out questions, demonstrations, prompts; all opened before training.

  Seeds differ, so that the prompts are other pictures than the
  demonstrations; held-out questions are the same for every seed.
  """
  endless = 1 << 30
  held_out = sources.open_source(
    e.evaluation.source, size=e.evaluation.size, seed=0
  )
  demonstrations = sources.open_source(
    e.data.demonstrations,
    size=endless,
    seed=2 * e.seed,
    labelled=e.data.labelled,
  )
  prompts = sources.open_source(
    e.data.prompts, size=endless, seed=2 * e.seed + 1
  )
  if len(held_out) < e.evaluation.size:
    raise InputError(
      f"config.evaluation.size is {e.evaluation.size} and "
      f"{e.evaluation.source} has {len(held_out)} records"
    )
  if "sft" in e.stages:
    sources.check_demonstrations(demonstrations)
  return held_out, demonstrations, prompts


def init_params(e: Experiment, mesh: jax.sharding.Mesh) -> Params:
  """Random weights, each made where it will live."""

  def init(key):
    params = vlm.init(e.model, key)
    return lora.attach(e.lora, params, key) if e.lora else params

  key = jax.random.key(e.seed)
  layout = param_shardings(mesh, jax.eval_shape(init, key))
  return jax.jit(init, out_shardings=layout)(key)


# --------------------------------------------------------------- summary
def read_summary(workdir: Path) -> dict[str, Any]:
  """The summary so far."""
  path = workdir / "summary.json"
  return json.loads(path.read_text()) if path.exists() else {"stages": {}}


def write_summary(workdir: Path, summary: dict[str, Any]) -> None:
  """Replaces summary.json; the first process alone writes."""
  if jax.process_index() == 0:
    metrics.write_text(
      workdir / "summary.json", json.dumps(summary, indent=2) + "\n"
    )


def describe_stage(folder: Path, held_out: dict[str, float]) -> dict[str, Any]:
  """What the summary says of a stage: held-out results and its own means."""
  lines = metrics.read_lines(folder / "metrics.jsonl")
  mean = lambda name: (
    statistics.fmean(line[name] for line in lines) if name in lines[0] else None
  )
  # The median, for the first step also compiles.
  speed = statistics.median(line["tokens_per_second"] for line in lines)
  return {
    "accuracy": held_out["answer"],
    "format": held_out["format"],
    "steps": lines[-1]["step"],
    "seconds": lines[-1]["seconds"],
    "effective": mean("effective"),
    "effective_without_buffer": mean("effective_without_buffer"),
    "tokens_per_second": speed,
    "compilations": lines[-1]["compilations"],
  }


def show(summary: dict[str, Any], workdir: Path) -> None:
  """The table at the end of a run, and where to look next."""
  percent = lambda x: "" if x is None else f"{100 * x:.1f} %"
  rows = [
    {
      "stage": name,
      "accuracy": percent(s["accuracy"]),
      "format": percent(s["format"]),
      "effective": percent(s["effective"]),
      "no buffer": percent(s["effective_without_buffer"]),
      "tokens/s": f"{s['tokens_per_second']:,.0f}",
      "steps": str(s["steps"]),
      "seconds": f"{s['seconds']:.0f}",
    }
    for name, s in summary["stages"].items()
  ]
  metrics.print_table("Held-out results after each stage", rows)
  if jax.process_index() == 0:
    print(
      "effective: share of rows that teach something, and what it would be "
      "without the buffer.\n"
      f"The run is in {workdir}: summary.json has this table, <stage>/metrics."
      "jsonl every step,\npolicy/samples.jsonl what the model wrote. Curves, "
      f"where TensorBoard is installed: tensorboard --logdir {workdir}"
    )
