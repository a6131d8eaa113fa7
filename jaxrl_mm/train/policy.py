"""Reinforcement learning: sample, grade, replay, update."""

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl_mm import algorithms, masked, pytree, sharding
from jaxrl_mm.algorithms import Algorithm
from jaxrl_mm.data import loader
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.sources import Source
from jaxrl_mm.errors import InputError
from jaxrl_mm.metrics import append_lines
from jaxrl_mm.models import vlm
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.optimizer import (
  OptimizerConfig,
  make_optimizer,
  split_trainable,
)
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.rollout import rollout
from jaxrl_mm.sampling.decode import Sampling
from jaxrl_mm.sampling.schedule import Schedule, make_sampler
from jaxrl_mm.structs import Metrics, Trajectories
from jaxrl_mm.train.loop import Setting, init_state, process_batches, run_stage
from jaxrl_mm.train.step import accumulate_gradients, apply_gradient

# All that need no critic.
NAMED = {
  "cispo": algorithms.cispo,
  "dapo": algorithms.dapo,
  "dr_grpo": algorithms.dr_grpo,
  "grpo": algorithms.grpo,
  "gspo": algorithms.gspo,
  "r1v2": algorithms.r1v2,
  "reinforce": algorithms.reinforce,
  "reinforce_plus_plus": algorithms.reinforce_plus_plus,
  "reinforce_plus_plus_baseline": algorithms.reinforce_plus_plus_baseline,
  "rloo": algorithms.rloo,
  "stable_reinforce": algorithms.stable_reinforce,
}


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
  """Reinforcement learning with verifiable rewards.

  Attributes:
    steps: updates, one for each batch of rollouts.
    prompts_per_step: P.
    samples_per_prompt: G.
    micro_batch: rows a device sees at once, at most; best a multiple of G, so
      that the vision tower sees a group's picture once.
    temperature, top_k, top_p: of the sampler.
    schedule: how sampling is cut, see `Schedule`.
    algorithm: `name` and the arguments of that function in `algorithms`.
    weights: of the reward terms.
    shuffle_rewards: the control that must not learn.
    samples_every: steps between entries in samples.jsonl.
    optimizer: see `OptimizerConfig`.
  """

  steps: int = 300
  prompts_per_step: int = 64
  samples_per_prompt: int = 8
  micro_batch: int = 16
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  schedule: Schedule = Schedule()
  algorithm: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"name": "r1v2", "capacity": 512}
  )
  weights: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: {"answer": 1.0, "format": 0.1}
  )
  shuffle_rewards: bool = False
  samples_every: int = 20
  optimizer: OptimizerConfig = OptimizerConfig()

  @property
  def rows(self) -> int:
    """B, rows of one update."""
    return self.prompts_per_step * self.samples_per_prompt


def make_algorithm(config: PolicyConfig, seed: int) -> Algorithm:
  """The algorithm the config names."""
  settings = dict(config.algorithm)
  name = settings.pop("name", None)
  if name not in NAMED:
    raise InputError(
      f"config.policy.algorithm.name is '{name}'; known are "
      f"{', '.join(sorted(NAMED))}"
    )
  try:
    algorithm = NAMED[name](**settings)
  except (TypeError, ValueError) as error:
    raise InputError(f"config.policy.algorithm: {error}") from error
  if config.shuffle_rewards:
    shuffled = optax.chain(
      algorithms.shuffle_rewards(seed), algorithm.transform
    )
    algorithm = algorithm._replace(transform=shuffled)
  return algorithm


def run(
  setting: Setting,
  config: PolicyConfig,
  params: Params,
  source: Source,
  terms: Mapping[str, Term],
  folder: Path,
) -> Params:
  """Trains the policy on rewards of its own answers.

  Args:
    setting: shared by all stages.
    config: of this one.
    params: weights on the mesh; they are given away.
    source: questions with answers only the reward sees.
    terms: the reward.
    folder: of the stage.

  Returns:
    The trained weights.
  """
  mesh, everywhere = setting.mesh, sharding.replicated(setting.mesh)
  algorithm = make_algorithm(config, setting.seed)
  trained, frozen = split_trainable(config.optimizer, params)
  optimizer = make_optimizer(config.optimizer, config.steps)
  sample = make_sampler(
    setting.model,
    Sampling(
      samples_per_prompt=config.samples_per_prompt,
      max_tokens=setting.layout.completion_tokens,
      end_token=setting.tokenizer.eos_token_id,
      pad_token=setting.tokenizer.pad_token_id,
      image_token=setting.image_token,
      temperature=config.temperature,
      top_k=config.top_k,
      top_p=config.top_p,
    ),
    config.schedule,
  )
  shapes = _trajectory_shapes(setting, config, source, terms)
  state, layout = init_state(
    trained,
    optimizer,
    lambda: algorithm.transform.init(optax.tree.zeros_like(shapes)),
    jax.random.key(setting.seed),
    mesh,
  )
  update = jax.jit(
    partial(_update, setting, config, algorithm, optimizer),
    donate_argnums=0,
    out_shardings=(layout, everywhere, everywhere),
  )

  def step(number, state, batch):
    began = time.perf_counter()
    key = jax.random.fold_in(state.key, number)
    whole = pytree.join(state.params, frozen)
    rolled = rollout(sample, whole, batch, key, terms, setting.tokenizer, mesh)
    state, metrics, shown = update(state, frozen, rolled.trajectories)
    jax.block_until_ready(state.step)
    seconds = time.perf_counter() - began
    if number % config.samples_every == 1 % config.samples_every:
      _write_samples(folder, number, setting, *sharding.to_host(shown))
    rest = seconds - rolled.sample_seconds - rolled.reward_seconds
    return state, metrics | {
      "grader_failures": sum(rolled.scores.failures.values()),
      "sample_seconds": rolled.sample_seconds,
      "reward_seconds": rolled.reward_seconds,
      "update_seconds": rest,
    }

  state = run_stage(
    folder,
    state,
    process_batches(
      setting, source, loader.encode_prompt, config.prompts_per_step
    ),
    step,
    steps=config.steps,
    loop=setting.loop,
    headline=("reward", "answer", "result", "effective"),
  )
  return pytree.join(state.params, frozen)


def _trajectory_shapes(setting, config, source, terms) -> Trajectories:
  """Shapes of the rows one rollout gives, for the buffer."""
  rows, length = config.rows, setting.layout.completion_tokens
  shape = jax.ShapeDtypeStruct
  row = shape((rows,), jnp.float32)
  text = lambda dtype: shape((rows, length), dtype)
  prompt = loader.encode_prompt(source[0], 0, setting.tokenizer, setting.layout)
  return Trajectories(
    tokens=text(jnp.int32),
    mask=text(bool),
    logp=text(jnp.float32),
    group=shape((rows,), jnp.int32),
    rewards=row,
    verifiable=row,
    advantages=row,
    prompts=jax.tree.map(lambda x: shape((rows, *x.shape), x.dtype), prompt),
    terms={name: row for name in terms},
  )


def _update(setting, config, algorithm, optimizer, state, frozen, trajectories):
  """Rewards to advantages to one optimizer step, all in one program."""
  mixed, memory = algorithm.transform.update(trajectories, state.algorithm)
  mixed = sharding.constrain_rows(mixed)
  rows = mixed.group.shape[0]
  replayed = optax.tree.get(memory, "replayed", jnp.zeros(rows, bool))

  def loss_fn(trained, batch):
    t, replayed = batch
    logp, entropy = vlm.completion_logp(
      setting.model,
      pytree.join(trained, frozen),
      t.prompts,
      t.tokens,
      t.mask,
      image_token=setting.image_token,
      samples_per_prompt=config.samples_per_prompt,
      temperature=config.temperature,
    )
    loss, metrics = algorithm.loss(logp, t)
    fresh = t.mask & ~replayed[:, None]
    metrics = metrics | {
      "entropy": masked.mean(entropy, t.mask),
      "sampler_gap": masked.mean(jnp.abs(logp - t.logp), fresh),
    }
    return loss, algorithm.weight(t), metrics

  gradient, loss, metrics = accumulate_gradients(
    loss_fn, state.params, (mixed, replayed), config.micro_batch
  )
  metrics = metrics | _describe(trajectories, mixed, memory)
  state, metrics = apply_gradient(
    state._replace(algorithm=memory), gradient, loss, metrics, optimizer
  )
  # Two groups are enough to read along; their pictures stay here.
  few = min(2 * config.samples_per_prompt, rows)
  text = mixed.prompts._replace(images=None)
  shown = (mixed._replace(prompts=text), replayed)
  return state, metrics, jax.tree.map(lambda x: x[:few], shown)


def _describe(fresh: Trajectories, mixed: Trajectories, memory) -> Metrics:
  """What the rollouts of this step were like."""
  share = lambda x: jnp.mean(x, dtype=jnp.float32)
  lengths = masked.lengths(fresh.mask)
  trained = masked.lengths(mixed.mask) + masked.lengths(mixed.prompts.mask)
  effective = share(algorithms.effective_rows(mixed))
  terms = {name: share(x) for name, x in fresh.terms.items()}
  return terms | {
    "reward": share(fresh.rewards),
    "completion_tokens": share(lengths),
    "cut_off": share(lengths == fresh.mask.shape[1]),
    "effective": optax.tree.get(memory, "effective_after", effective),
    "effective_without_buffer": optax.tree.get(
      memory, "effective_before", effective
    ),
    "tokens": jnp.sum(trained, dtype=jnp.float32),
  }


def _write_samples(folder, number, setting, shown, replayed):
  """Appends some rollouts to samples.jsonl, for people to read."""
  read = partial(tok.decode, setting.tokenizer)
  columns = zip(read(shown.prompts.tokens), read(shown.tokens), replayed)
  lines = [
    {
      "step": number,
      "group": int(shown.group[i]),
      "prompt": prompt,
      "completion": completion,
      "terms": {name: float(x[i]) for name, x in shown.terms.items()},
      "reward": float(shown.rewards[i]),
      "advantage": float(shown.advantages[i]),
      "replayed": bool(was_replayed),
    }
    for i, (prompt, completion, was_replayed) in enumerate(columns)
  ]
  append_lines(folder / "samples.jsonl", lines)
