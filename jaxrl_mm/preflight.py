"""What is checked before the first stage, on any machine and on this one."""

import dataclasses
import shutil
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxrl_mm import experiment, inputs, sharding
from jaxrl_mm.data.sources import Source
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.optimizer import make_optimizer, split_trainable
from jaxrl_mm.rewards.endpoint import Endpoint
from jaxrl_mm.rewards.judge import JudgeDown
from jaxrl_mm.sampling.weights import FORMS
from jaxrl_mm.train import assemble, policy
from jaxrl_mm.train.collect import CollectConfig
from jaxrl_mm.train.policy import PolicyConfig


def check_config(e: Experiment, shards: int) -> None:
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
  experiment.rewards(e)
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


# (name, number, name of its divisor, divisor)
Division = tuple[str, int, str, int]


def _divisions(e: Experiment, shards: int) -> Iterator[Division]:
  """All that must divide."""
  if e.mesh.sequence > 0:
    length = e.data.prompt_tokens + e.data.completion_tokens
    cuts = "config.mesh.sequence", e.mesh.sequence
    yield "config.data.prompt_tokens + completion_tokens", length, *cuts
  size, batch = e.evaluation.size, e.evaluation.batch
  yield "config.evaluation.size", size, "its batch", batch
  yield "config.evaluation.batch", batch, *_cut(shards)
  yield (
    f"the rows of one shard, {batch} evaluation.batch / {shards} shards",
    batch // shards,
    "config.evaluation.micro_batch",
    min(e.evaluation.micro_batch, batch // shards),
  )
  for name in e.stages:
    if name == "assemble":
      for part in ("text", "align"):
        if config := getattr(e.assemble, part):
          yield from _batch_divisions(f"assemble.{part}", config, shards)
    if name in ("sft", "cold_start", "reward_model", "preference"):
      yield from _batch_divisions(name, getattr(e, name), shards)
    if name in ("reward_model", "preference"):
      yield from _collect_divisions(name, getattr(e, name).collect, shards)
    if name == "difficulty":
      yield "config.difficulty.batch", e.difficulty.batch, *_cut(shards)
    if name == "policy":
      yield from _policy_divisions(e.policy, shards)
  if e.judging:
    yield "config.judging.batch", e.judging.batch, *_cut(shards)


def _cut(shards: int) -> tuple[str, int]:
  return f"the {shards} row shards of config.mesh", shards


def _batch_divisions(name: str, config: Any, shards: int) -> Iterator[Division]:
  """Of a stage that reads `batch` rows an update."""
  rows = config.batch // shards
  yield f"config.{name}.batch", config.batch, *_cut(shards)
  if not config.micro_tokens:
    yield (
      f"the rows of one shard, {config.batch} {name}.batch / {shards} shards",
      rows,
      f"config.{name}.micro_batch",
      min(config.micro_batch, rows),
    )


def _collect_divisions(
  stage: str, c: CollectConfig, shards: int
) -> Iterator[Division]:
  """Of a collection of pairs."""
  where = f"config.{stage}.collect"
  yield f"{where}.prompts", c.prompts, "its batch", c.prompts_per_step
  yield f"{where}.prompts_per_step", c.prompts_per_step, *_cut(shards)
  rows = c.prompts_per_step * c.samples_per_prompt // shards
  if not c.micro_tokens:
    yield (
      f"the rows of one shard, {c.prompts_per_step} prompts_per_step * "
      f"{c.samples_per_prompt} samples_per_prompt / {shards} shards",
      rows,
      f"{where}.micro_batch",
      min(c.micro_batch, rows),
    )


def _policy_divisions(p: PolicyConfig, shards: int) -> Iterator[Division]:
  """Of rollouts, their updates, and the buffer."""
  per_step = "config.policy.prompts_per_step", p.prompts_per_step
  yield *per_step, *_cut(shards)
  rows = (
    f"the rows of one shard, {p.prompts_per_step} prompts_per_step * "
    f"{p.samples_per_prompt} samples_per_prompt / {shards} shards"
  )
  several = p.updates_per_rollout
  if several != 1:
    updates = "config.policy.updates_per_rollout"
    yield rows, p.rows // shards, updates, several
    rows += f" / {several} updates_per_rollout"
  size = p.rows // shards // max(several, 1)
  if not p.micro_tokens:
    most = min(p.micro_batch, size)
    yield rows, size, "config.policy.micro_batch", most
  if "capacity" in p.algorithm:
    capacity = p.algorithm["capacity"]
    yield "config.policy.algorithm.capacity", capacity, *_cut(shards)
  if p.pool:
    yield "config.policy.pool", p.pool, *per_step


def _counts(e: Experiment) -> dict[str, int]:
  """All that is counted, and not by zero."""
  text = e.assemble.text
  counts = {"config.assemble.text.steps": text.steps} if text else {}
  for name in ("sft", "cold_start", "reward_model", "preference", "policy"):
    counts[f"config.{name}.micro_batch"] = getattr(e, name).micro_batch
  for name in ("reward_model", "preference"):
    at_once = getattr(e, name).collect.micro_batch
    counts[f"config.{name}.collect.micro_batch"] = at_once
  return counts | {
    "config.assemble.align.steps": e.assemble.align.steps,
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
  """Asks the models that a stage to come will ask, once from each host.

  Args:
    e: the experiment.
    done: stages that will not ask again.

  Raises:
    InputError: one of them does not answer.
  """
  found, host = "", socket.gethostname()
  for name, endpoint in _endpoints(e, done).items():
    try:
      dataclasses.replace(endpoint, retries=0)(["Say 1."])
    except JudgeDown as error:
      found = found or f"config.{name}, asked by {host}: {error}"
  for problem in filter(None, sharding.gather_texts(found)):
    raise InputError(problem)


def _endpoints(e: Experiment, done: Collection[str]) -> dict[str, Endpoint]:
  """Those of the stages to come, by their place in the config."""
  left, asked = set(e.stages) - set(done), {}
  if "difficulty" in left and e.difficulty.teacher.base_url:
    asked["difficulty.teacher"] = e.difficulty.teacher
  if "policy" in left and e.consistency and "consistency" in e.policy.weights:
    asked["consistency"] = e.consistency
  return asked


def check_disk(
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
  rows = policy.trajectory_shapes(inputs.make_layout(e), e.policy, terms)
  transform = policy.make_algorithm(e.policy, e.seed).transform
  return jax.eval_shape(transform.init, rows)
