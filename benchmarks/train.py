"""How fast a GRPO step is, where its time goes, and what other trainers take.

  python -m benchmarks.train --json benchmarks/results/train_cpu.jsonl \\
    --trl_python TRL_ENV/bin/python --tunix_python TUNIX_ENV/bin/python
  python -m benchmarks.train --size qwen2.5-vl-7b \\
    --json benchmarks/results/train_gpu.jsonl

On one device, with Qwen2.5-VL of the named size and random weights. A step
draws G answers to each of P prompts, grades them, and updates all weights by
GRPO once. No answer ends before its limit, so that all trainers do the same
work; a reward is a random number. Where a case says so, each prompt holds a
picture of 112 x 112 pixels, which are 16 of its tokens. In the long tail,
limits are log-normal (median T / 5, sigma 1, cut at T), and the update takes
its rows whole or packed; elsewhere it is packed. Of a size that does not fit
the device, layers of the decoder are left out until it does, and the table says
how many are left.

"tokens/s" counts prompt and answer tokens of all rows over the time of a whole
step, as EasyR1 does for each of its devices, "learned" over that of the update.
"reshard" is the time from training to decoding weights, "reward" that of
reading and grading, and "update" has the forward and backward passes and the
optimizer. Sampling is divided by calls of its parts: "vision" is the tower over
the P prompts, "prefill" a call with one token a row less that, "decode" what is
left. "log-probs" is a forward pass over all rows, which a reference policy
would add.

The operations a model needs are those of its matrix products, recomputation and
padding not counted, nor a prompt more than once: with F = 2 * weights of the
decoder * tokens + 4 * layers * heads * head width * pairs of tokens that see
each other + 2 * V * D * answer tokens + tower and projector, an update needs 3
F. "MFU" is that over the time of the update and the rate of the device: 989e12
on an H100 or H200 in bfloat16, else what a large matrix product reaches here;
"step MFU" adds what sampling needs and divides by the whole step.

"peak" is the most memory that was in use: of the device where it tells, else of
the process. Peers run in processes of their own, in turns with ours, and update
from all rows at once: a group at a time makes neither of them faster. "x ours"
is their shortest step over ours; not a median, for threads that wait for each
other, as torch's do, lose far more where other programs want the cores too.
"""

import argparse
import dataclasses
import json
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import arithmetic, rollout
from benchmarks.arithmetic import Work
from benchmarks.rollout import IMAGE, Case
from jaxrl_mm import metrics, sharding
from jaxrl_mm.algorithms.calibrate import hold_in_band
from jaxrl_mm.data import loader, sources, tokenizer
from jaxrl_mm.data.patches import Patching
from jaxrl_mm.data.sources import Example
from jaxrl_mm.models import config as models
from jaxrl_mm.models import vlm
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.optimizer import OptimizerConfig, make_optimizer
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.rollout import rollout as draw
from jaxrl_mm.sampling.decode import Sampling
from jaxrl_mm.sampling.schedule import Schedule, make_sampler
from jaxrl_mm.sampling.weights import to_decode
from jaxrl_mm.train import policy
from jaxrl_mm.train.collect import make_logp
from jaxrl_mm.train.loop import LoopConfig, Setting, init_state
from jaxrl_mm.train.policy import PolicyConfig


class Size(NamedTuple):
  """A model and the dtype of its optimizer's moments."""

  model: ModelConfig
  moments: str


SIZES = {
  # Nothing is recomputed where everything fits, as the peers do it.
  "tiny": Size(
    dataclasses.replace(rollout.SIZES["tiny"], remat="everything_saveable"),
    "float32",
  ),
  "qwen2.5-vl-7b": Size(
    dataclasses.replace(models.qwen2_5_vl_7b(), param_dtype="bfloat16"),
    "bfloat16",
  ),
}
RATES = {"H100": 989e12, "H200": 989e12}


class Step(NamedTuple):
  """What a step does.

  Attributes:
    case: the rollout.
    micro_batch: rows the update takes at once, at most.
    answers: for how many beside one prompt there is room then; 0: whole rows.
  """

  case: Case
  micro_batch: int
  answers: int = 0

  @property
  def micro_tokens(self) -> int:
    """See `PolicyConfig`."""
    tokens = self.case.prompt_tokens + self.answers * self.case.tokens
    return tokens if self.answers else 0


def steps(size: str) -> Iterator[Step]:
  """What is measured; peers run those whose rows are equally long."""
  if size == "tiny":
    for case in (
      Case("4 pictures x 8", 4, 8, 64, 64, 32, picture=True),
      Case("4 pictures x 8, prompt of 256", 4, 8, 256, 64, 32, picture=True),
      Case("4 texts x 8", 4, 8, 64, 64, 32),
      Case("4 x 8, prompt of 256", 4, 8, 256, 64, 32),
    ):
      yield Step(case, 8, 8)
    tail = Case("long tail", 4, 8, 64, 256, 32, lengths="long tail")
    rows, packed = Step(tail, 4), Step(tail, 16, 4)
  else:
    case = Case("8 pictures x 8 at 4k", 8, 8, 1024, 3072, 64, picture=True)
    yield Step(case, 2, 2)
    tail = case._replace(picture=False, lengths="long tail")
    rows, packed = Step(tail, 2), Step(tail, 8, 2)
  yield rows._replace(case=tail._replace(name="long tail, whole rows"))
  yield packed._replace(case=tail._replace(name="long tail, packed"))


def of_case(config: ModelConfig, case: Case) -> ModelConfig:
  """Without a tower where there is nothing to see."""
  return config if case.picture else dataclasses.replace(config, vision=None)


class Ours:
  """Our trainer on one case."""

  def __init__(self, size: Size, step: Step):
    self.case, self._calls = step.case, 0
    self.config = of_case(size.model, step.case)
    self._policy = PolicyConfig(
      prompts_per_step=step.case.prompts,
      samples_per_prompt=step.case.samples,
      micro_batch=step.micro_batch,
      micro_tokens=step.micro_tokens,
      algorithm={"name": "grpo"},
      optimizer=OptimizerConfig(moments=size.moments),
    )
    self._setting = make_setting(self.config, step.case)
    self._sample = make_sample(self.config, step.case)
    self._state, update = make_state(self._setting, self._policy)
    arrays = rollout.make_prompts(self.config, step.case)
    examples = [Example("", (), "", "")] * step.case.prompts
    self._batch = loader.Batch(arrays, examples)
    drawn = self._draw(self._state.params).trajectories
    self._update = update.lower(self._state, {}, drawn).compile()
    self.update_bytes = memory_needed(self._update)

  def step(self) -> dict[str, float]:
    """Seconds of the parts of a step that follow each other."""
    began = time.perf_counter()
    weights = to_decode(self.config, self._state.params)
    jax.block_until_ready(weights)
    resharded = time.perf_counter()
    rolled = self._draw(weights)
    del weights
    drawn = time.perf_counter()
    self._state, *_ = self._update(self._state, {}, rolled.trajectories)
    jax.block_until_ready(self._state)
    return {
      "reshard": resharded - began,
      "sample": rolled.sample_seconds,
      "reward": rolled.reward_seconds,
      "update": time.perf_counter() - drawn,
    }

  def apart(self, repeats: int) -> dict[str, float]:
    """Seconds of what cannot be seen within a step."""
    params = self._state.params
    rolled = self._draw(params).trajectories
    prompts = sharding.to_device(self._batch.arrays, self._setting.mesh)
    ones = np.ones(len(rolled.tokens), int)
    key = jax.random.key(0)
    first = lambda: self._sample(params, prompts, key, limits=ones)
    at_once = self._policy.micro_batch, self._policy.micro_tokens
    shared = self.case.samples, *at_once
    score = make_logp(self._setting, *shared)
    rows = rolled.prompts, rolled.tokens, rolled.mask
    parts = {
      "prefill": shortest(first, repeats),
      "logp": shortest(lambda: score(params, *rows), repeats),
      "vision": 0.0,
    }
    if prompts.images is not None:
      see = jax.jit(vlm.encode_images, static_argnums=0)
      look = lambda: see(self.config, params, prompts.images)
      parts["vision"] = shortest(look, repeats)
    return parts

  def _draw(self, weights):
    self._calls += 1
    return draw(
      partial(self._sample, limits=rollout.limits(self.case)),
      weights,
      self._batch,
      jax.random.key(self._calls),
      {"random": Term(reward)},
      self._setting.tokenizer,
      self._setting.mesh,
    )


def reward(texts, _) -> np.ndarray:
  return np.random.default_rng(0).random(len(texts), np.float32)


def make_setting(config: ModelConfig, case: Case) -> Setting:
  """What a stage is told, for prompts that are made here."""
  return Setting(
    model=config,
    tokenizer=tokenizer.build(sources.digits_texts()),
    image_token=IMAGE,
    layout=loader.Layout(case.prompt_tokens, case.tokens, pictures(case)),
    mesh=one_device(),
    loop=LoopConfig(),
    seed=0,
  )


def one_device() -> jax.sharding.Mesh:
  return sharding.make_mesh(devices=jax.devices()[:1])


def pictures(case: Case) -> Patching | None:
  return Patching(windows=1) if case.picture else None


def make_sample(config: ModelConfig, case: Case) -> Callable:
  """A sampler of answers that have no end."""
  sampling = Sampling(
    samples_per_prompt=case.samples,
    max_tokens=case.tokens,
    end_token=-1,
    pad_token=0,
    image_token=IMAGE,
  )
  return make_sampler(config, sampling, Schedule(slots=case.slots))


def make_state(setting: Setting, config: PolicyConfig):
  """Random weights with their optimizer, and the jitted update."""
  algorithm = policy.make_algorithm(config, 0)
  controller = hold_in_band(0.0, None)
  optimizer = make_optimizer(config.optimizer, config.updates)
  layout = param_shardings(setting.mesh, shapes(setting.model))
  init = jax.jit(vlm.init, static_argnums=0, out_shardings=layout)
  state, layout = init_state(
    init(setting.model, jax.random.key(0)),
    optimizer,
    lambda: (algorithm.transform.init(()), controller.init(())),
    jax.random.key(0),
    setting.mesh,
  )
  return state, policy.make_update(
    setting, config, algorithm, controller, optimizer, layout
  )


def shapes(config: ModelConfig) -> vlm.Params:
  return jax.eval_shape(lambda key: vlm.init(config, key), jax.random.key(0))


def memory_needed(compiled) -> int:
  """Bytes of a program: its arrays and the compiler's own."""
  m = compiled.memory_analysis()
  given = m.argument_size_in_bytes + m.output_size_in_bytes
  return given + m.temp_size_in_bytes - m.alias_size_in_bytes


def prepare(size: Size, step: Step) -> Ours:
  """With the most layers of the decoder that the device has room for."""
  told = jax.devices()[0].memory_stats() or {}
  room = told.get("bytes_limit", float("inf"))
  decoder = size.model.decoder
  for layers in range(decoder.layers, 0, -max(decoder.layers // 14, 1)):
    fewer = dataclasses.replace(decoder, layers=layers)
    model = dataclasses.replace(size.model, decoder=fewer)
    if least_memory(model) < room:
      try:
        ours = Ours(size._replace(model=model), step)
        ours.step()
        return ours
      except jax.errors.JaxRuntimeError as error:
        print(f"{layers} layers do not fit: {str(error).splitlines()[0]}")
  raise SystemExit(f"error: not one layer fits {room / 2**30:.0f} GiB")


def least_memory(config: ModelConfig) -> int:
  """Bytes of weights, two moments and gradients, all as narrow as weights."""
  count = sum(x.size for x in jax.tree.leaves(shapes(config)))
  return 4 * arithmetic.width(config.param_dtype) * count


def shortest(f: Callable, repeats: int) -> float:
  jax.block_until_ready(f())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(f())
    times.append(time.perf_counter() - start)
  return min(times)


def update_operations(config: ModelConfig, case: Case) -> float:
  """3 F, see the top of the file."""
  answers = [int(n) for n in rollout.limits(case)]
  rows = [
    arithmetic.decoder_pass(config, 1, case.prompt_tokens + n, 1)
    for n in answers
  ]
  again = len(answers) - case.prompts
  again = arithmetic.decoder_pass(config, again, case.prompt_tokens, 1)
  forward = sum(rows, Work()) + arithmetic.head(config, sum(answers), 1)
  return 3 * ((forward + seen(config, case)).flops - again.flops)


def sampling_operations(config: ModelConfig, case: Case) -> float:
  """Prompts once, then token by token, each seeing half of its answer."""
  answers = rollout.limits(case)
  prefill = arithmetic.decoder_pass(config, case.prompts, case.prompt_tokens, 1)
  tokens = [
    int(n)
    * arithmetic.decode_token(config, 1, 1, case.prompt_tokens, n // 2, 1).flops
    for n in answers
  ]
  return (prefill + seen(config, case)).flops + sum(tokens)


def seen(config: ModelConfig, case: Case) -> Work:
  """Tower and projector, once a prompt."""
  return arithmetic.vision_pass(config, pictures(case), case.prompts, 1)


def rate(config: ModelConfig) -> float:
  """Operations a second."""
  kind = jax.devices()[0].device_kind
  known = [x for name, x in RATES.items() if name in kind]
  if known and config.dtype == "bfloat16":
    return known[0]
  return rollout.peak(config.dtype)


def peak_memory() -> int:
  """Bytes, of the device where it tells, else of this process."""
  told = jax.devices()[0].memory_stats() or {}
  of_process = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return told.get("peak_bytes_in_use", of_process)


def compare(
  size: Size,
  step: Step,
  peers: list[rollout.Peer],
  repeats: int,
  speed: float,
) -> Iterator[tuple[str, dict]]:
  """Ours and theirs in turns; the shortest step of each counts."""
  compilations, began = metrics.compilations(), time.perf_counter()
  ours = prepare(size, step)
  ours.step()
  first = {
    "compile_seconds": time.perf_counter() - began,
    "compilations": metrics.compilations() - compilations,
  }
  asked = step.case._asdict()
  peers = [p for p in peers if p.takes(step.case) and is_even(step.case)]
  for peer in peers:
    peer.ask(asked)
  turns = [
    (ours.step(), [peer.ask(asked) for peer in peers]) for _ in range(repeats)
  ]
  totals = [sum(parts.values()) for parts, _ in turns]
  best = turns[int(np.argmin(totals))][0]
  yield "ours", describe(ours, best, speed, repeats) | first
  for i, peer in enumerate(peers):
    told = [theirs[i] for _, theirs in turns]
    seconds = [x["seconds"] for x in told]
    yield (
      peer.name,
      {
        "tokens_per_second": count_tokens(step.case) / min(seconds),
        "seconds": min(seconds),
        "times_ours": min(seconds) / min(totals),
        "peak_bytes": max(x["peak_bytes"] for x in told),
      },
    )


def is_even(case: Case) -> bool:
  """Whether all answers are equally long."""
  return case.lengths == "full"


def count_tokens(case: Case) -> int:
  """Of prompts and answers, padding not counted."""
  rows = case.prompts * case.samples
  return rows * case.prompt_tokens + int(rollout.limits(case).sum())


def describe(
  ours: Ours, parts: dict[str, float], speed: float, repeats: int
) -> dict:
  """The numbers of one step; see the top of the file."""
  apart, seconds = ours.apart(repeats), sum(parts.values())
  tokens = count_tokens(ours.case)
  update = update_operations(ours.config, ours.case)
  whole = update + sampling_operations(ours.config, ours.case)
  return parts | {
    "tokens_per_second": tokens / seconds,
    "learned_per_second": tokens / parts["update"],
    "seconds": seconds,
    "vision": apart["vision"],
    "prefill": apart["prefill"] - apart["vision"],
    "decode": parts["sample"] - apart["prefill"],
    "logp": apart["logp"],
    "mfu": update / parts["update"] / speed,
    "step_mfu": whole / seconds / speed,
    "peak_bytes": peak_memory(),
    "update_bytes": ours.update_bytes,
    "layers": ours.config.decoder.layers,
  }


COLUMNS = {
  "tokens_per_second": "tokens/s",
  "learned_per_second": "learned/s",
  "seconds": "step s",
  "vision": "vision",
  "prefill": "prefill",
  "decode": "decode",
  "reward": "reward",
  "logp": "log-probs",
  "update": "update",
  "reshard": "reshard",
  "mfu": "MFU",
  "step_mfu": "step MFU",
  "peak_bytes": "peak bytes",
  "layers": "layers",
  "times_ours": "x ours",
}


def line(name: str, record: dict) -> str:
  cells = (
    f"{record[key]:11.3g}" if key in record else " " * 11 for key in COLUMNS
  )
  return f"{name:52}" + "".join(cells)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--size", default="tiny", choices=SIZES)
  parser.add_argument("--only", default="", help="part of a case's name")
  parser.add_argument("--scale", type=int, default=1, help="divide all lengths")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--trl_python", help="that has trl and torch")
  parser.add_argument("--tunix_python", help="that has google-tunix")
  parser.add_argument("--json", help="append one object a line to this file")
  flags = parser.parse_args()
  size = SIZES[flags.size]
  about = {"size": flags.size} | rollout.about_machine()
  about |= {"rate": rate(size.model)}
  print(json.dumps(about))
  pythons = {"trl_grpo": flags.trl_python, "tunix_grpo": flags.tunix_python}
  peers = rollout.find_peers(pythons, size.model)
  print(" " * 52 + "".join(f"{name:>11}" for name in COLUMNS.values()))
  tell = rollout.make_tell(line, about, flags.json)
  for step in steps(flags.size):
    if flags.only in step.case.name:
      case = rollout.shorter(step.case, flags.scale)
      with jax.set_mesh(one_device()):
        step = step._replace(case=case)
        found = compare(size, step, peers, flags.repeats, about["rate"])
        for name, record in found:
          tell(case, f"{case.name}: {name}", record)
  for peer in peers:
    peer.close()


if __name__ == "__main__":
  main()
