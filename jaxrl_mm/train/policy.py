"""Reinforcement learning: sample, grade, replay, update."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_mm import algorithms, masked, pytree, sharding
from jaxrl_mm.algorithms import Algorithm
from jaxrl_mm.algorithms.calibrate import Band, hold_in_band
from jaxrl_mm.data import loader
from jaxrl_mm.data.loader import Layout
from jaxrl_mm.data.sources import Source, Subset
from jaxrl_mm.errors import InputError
from jaxrl_mm.metrics import write_text
from jaxrl_mm.models import vlm
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.optimizer import (
  OptimizerConfig,
  make_optimizer,
  split_trainable,
)
from jaxrl_mm.rewards import hybrid
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.rollout import Sample, refill, rollout, uniform_groups
from jaxrl_mm.sampling.schedule import Schedule
from jaxrl_mm.sampling.weights import to_decode
from jaxrl_mm.structs import Metrics, Trajectories
from jaxrl_mm.train.collect import make_score
from jaxrl_mm.train.loop import Setting, init_state, process_batches, run_stage
from jaxrl_mm.train.sample import (
  make_sample,
  read_prompts,
  write_samples,
)
from jaxrl_mm.train.step import (
  accumulate_gradients,
  apply_gradient,
  map_rows,
  split_rows,
)

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
class LearnedConfig:
  """The learned part of the hybrid reward, see `rewards.hybrid.rescale`.

  Attributes:
    weight: of it.
    normalize: (mean, std) of scores on held-out answers, or None.
    clip: (low, high), or None.
    threshold: 1 where a score reaches it, else 0; None keeps the score.
    band: of the hallucination rate, which moves the threshold; None leaves it.
  """

  weight: float = 1.0
  normalize: tuple[float, float] | None = None
  clip: tuple[float, float] | None = None
  threshold: float | None = None
  band: Band | None = None


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
  """Reinforcement learning with verifiable rewards.

  Attributes:
    steps: batches of rollouts.
    prompts_per_step: P.
    samples_per_prompt: G.
    updates_per_rollout: into how many updates, one after the other, the rows of
      a step are cut; all but the first are off-policy. R1-Reward has 2.
    micro_batch: rows a device sees at once, at most; best a multiple of G, so
      that the vision tower sees a group's picture once.
    bounds: lengths that answers are cut to, in equal steps up to T, see
      `train.lengths`; each is compiled.
    temperature, top_k, top_p: of the sampler.
    cache: form of keys and values in the sampler, see `decode.Sampling`.
    decode_weights: form of the weights in the sampler, see
      `sampling.weights.to_decode`; `sampler_gap` in the metrics shows what
      "int8" costs.
    stop: strings that end an answer.
    refill: how often a step may ask further questions in place of those whose
      answers were all right or all wrong, see `rollout.refill`.
    schedule: how sampling is cut, see `Schedule`.
    algorithm: `name` and the arguments of that function in `algorithms`.
    weights: of the reward terms.
    shuffle_rewards: the control that must not learn.
    learned: the reward model's part of the reward, or None.
    pool: questions asked before training, of which those are kept whose
      answers the rules do not all find equal; 0 keeps every question.
    samples_every: steps between entries in samples.jsonl.
    probe_every: steps between small evaluations on held-out questions; 0 for
      none.
    optimizer: see `OptimizerConfig`.
  """

  steps: int = 300
  prompts_per_step: int = 64
  samples_per_prompt: int = 8
  updates_per_rollout: int = 1
  micro_batch: int = 16
  bounds: int = 1
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  cache: str = "model"
  decode_weights: str = "model"
  stop: tuple[str, ...] = ()
  refill: int = 0
  schedule: Schedule = Schedule()
  algorithm: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"name": "r1v2", "capacity": 512}
  )
  weights: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: {"answer": 1.0, "format": 0.1}
  )
  shuffle_rewards: bool = False
  learned: LearnedConfig | None = None
  pool: int = 0
  samples_every: int = 20
  probe_every: int = 0
  optimizer: OptimizerConfig = OptimizerConfig()

  @property
  def rows(self) -> int:
    """B, rows of one step."""
    return self.prompts_per_step * self.samples_per_prompt

  @property
  def updates(self) -> int:
    """Of the weights, in all steps."""
    return self.steps * self.updates_per_rollout

  @property
  def has_reference(self) -> bool:
    """Whether the algorithm asks how far the policy is from its start."""
    return bool(self.algorithm.get("kl_weight"))


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
  *,
  reward: Params | None = None,
  probe: Callable[[Params], dict[str, float]] | None = None,
) -> Params:
  """Trains the policy on rewards of its own answers.

  Args:
    setting: shared by all stages.
    config: of this one.
    params: weights on the mesh; they are given away.
    source: questions with answers only the reward sees.
    terms: the rules of the reward.
    folder: of the stage.
    reward: the reward model, for `config.learned`.
    probe: measures the weights every `config.probe_every` steps.

  Returns:
    The trained weights.
  """
  mesh = setting.mesh
  algorithm = make_algorithm(config, setting.seed)
  trained, frozen = split_trainable(config.optimizer, params)
  optimizer = make_optimizer(config.optimizer, config.updates)
  sample = _sampler(setting, config)
  add_learned = _make_learned(setting, config, reward)
  add_reference = make_reference(setting, config, trained, frozen)
  learned = config.learned or LearnedConfig()
  controller = hold_in_band(learned.threshold or 0.0, learned.band)
  if config.pool:
    source = filter_prompts(setting, config, params, source, terms, folder)
  shapes = trajectory_shapes(setting.layout, config, list(terms))
  memory_of = lambda: algorithm.transform.init(optax.tree.zeros_like(shapes))
  state, layout = init_state(
    trained,
    optimizer,
    lambda: (memory_of(), controller.init(())),
    jax.random.key(setting.seed),
    mesh,
  )
  update = make_update(
    setting, config, algorithm, controller, optimizer, layout
  )

  batches = process_batches(
    setting, source, loader.encode_prompt, config.prompts_per_step
  )

  def step(number, state, batch):
    began = time.perf_counter()
    key = jax.random.fold_in(state.key, number)
    whole = pytree.join(state.params, frozen)
    weights = to_decode(setting.model, whole, config.decode_weights)
    jax.block_until_ready(weights)
    resharded = time.perf_counter()
    rolled, refilled = _collect(
      setting, config, sample, weights, batch, batches, key, terms
    )
    del weights
    trajectories = add_learned(rolled.trajectories, state.algorithm[1])
    trajectories = add_reference(trajectories)
    state, metrics, shown = update(state, frozen, trajectories)
    jax.block_until_ready(state.step)
    seconds = time.perf_counter() - began
    if _is_due(number, config.samples_every):
      write_samples(setting, folder, number, *sharding.to_host(shown))
    if probe and config.probe_every and _is_due(number, config.probe_every):
      metrics |= probe(pytree.join(state.params, frozen))
    parts = {
      "reshard_seconds": resharded - began,
      "sample_seconds": rolled.sample_seconds,
      "reward_seconds": rolled.reward_seconds,
    }
    rest = seconds - sum(parts.values())
    return state, metrics | refilled | parts | {
      "grader_failures": sum(rolled.scores.failures.values()),
      "update_seconds": rest,
    }

  state = run_stage(
    folder,
    state,
    batches,
    step,
    steps=config.steps,
    loop=setting.loop,
    profile=setting.profile,
    headline=("reward", "answer", "result", "effective"),
  )
  return pytree.join(state.params, frozen)


def _collect(setting, config, sample, weights, batch, batches, key, terms):
  """Rollouts of a step, and numbers about their refilling."""
  draw = lambda batch, key: rollout(
    sample,
    weights,
    batch,
    key,
    terms,
    setting.tokenizer,
    setting.mesh,
    setting.layout.prefix,
  )
  rolled, samples = draw(batch, key), config.samples_per_prompt
  first, rounds = rolled.scores.total.mean(), 0
  while (missing := uniform_groups(rolled, samples)) and rounds < config.refill:
    rounds += 1
    more = draw(next(batches), jax.random.fold_in(key, rounds))
    rolled = refill(rolled, more, samples, setting.mesh)
  if not config.refill:
    return rolled, {}
  if missing:
    logging.warning(
      "after %d rounds %d of %d groups still have equal rewards; they are "
      "trained on as they are",
      rounds,
      missing,
      config.prompts_per_step,
    )
  return rolled, {
    "refill_rounds": rounds,
    "refill_missing": missing / config.prompts_per_step,
    "reward_before_refill": sharding.mean_over_processes(float(first)),
  }


def _sampler(setting: Setting, config: PolicyConfig) -> Sample:
  return make_sample(
    setting,
    samples_per_prompt=config.samples_per_prompt,
    temperature=config.temperature,
    top_k=config.top_k,
    top_p=config.top_p,
    cache=config.cache,
    stop=config.stop,
    schedule=config.schedule,
  )


def _is_due(number: int, every: int) -> bool:
  """At the first step, and every `every` steps from there."""
  return number % every == 1 % every


def _make_learned(setting, config, reward):
  """A function that adds the learned term to the reward of trajectories."""
  learned = config.learned
  if learned is None:
    return lambda t, control: t
  score = make_score(setting, config.samples_per_prompt, config.micro_batch)
  add = jax.jit(partial(_add_term, learned.weight))

  def add_learned(t, control):
    raw = learned.threshold is None
    scaled = hybrid.rescale(
      sharding.to_host(score(reward, t.prompts, t.tokens, t.mask)),
      normalize=learned.normalize,
      clip=learned.clip,
      threshold=None if raw else float(control.threshold),
    )
    return add(t, sharding.to_device(scaled, setting.mesh))

  return add_learned


def _add_term(weight, t: Trajectories, learned) -> Trajectories:
  """What the rules decided stays what the buffer goes by."""
  rewards = t.rewards + weight * learned
  return t._replace(rewards=rewards, terms=t.terms | {"learned": learned})


def make_reference(
  setting: Setting, config: PolicyConfig, trained: Params, frozen: Params
) -> Callable[[Trajectories], Trajectories]:
  """A function that adds `reference_logp` where the algorithm needs it.

  The reference is the policy of the stage's start. Only the trained weights
  are kept a second time: adapters or a projector alone stand beside the frozen
  weights that both policies share.

  Args:
    setting, config: of the stage.
    trained: weights before the first update; they are copied.
    frozen: the others.
  """
  if not config.has_reference:
    return lambda t: t
  reference = jax.tree.map(jnp.copy, trained)
  score = jax.jit(partial(_reference_logp, setting, config))
  return lambda t: t._replace(reference_logp=score(reference, frozen, t))


def _reference_logp(setting, config, reference, frozen, t):
  def few(rows):
    logp, _ = vlm.completion_logp(
      setting.model,
      pytree.join(reference, frozen),
      *rows,
      image_token=setting.image_token,
      samples_per_prompt=config.samples_per_prompt,
      temperature=config.temperature,
    )
    return logp

  return map_rows(few, (t.prompts, t.tokens, t.mask), config.micro_batch)


def filter_prompts(
  setting: Setting,
  config: PolicyConfig,
  params: Params,
  source: Source,
  terms: Mapping[str, Term],
  folder: Path,
) -> Source:
  """The questions of the pool that have something to teach before training.

  Skywork R1V2 (https://arxiv.org/abs/2504.16656, section 3.3) filters its
  prompts so once, by the policy it starts from. The numbers of those kept are
  in pool.json, which is read if it is there.
  """
  path = folder / "pool.json"
  known = path.read_text() if path.exists() else ""
  kept = json.loads(sharding.of_first_process(known) or "null")
  if kept is None:
    sample, kept = _sampler(setting, config), []
    weights = to_decode(setting.model, params, config.decode_weights)
    for start in range(0, config.pool, config.prompts_per_step):
      batch = read_prompts(setting, source, start, config.prompts_per_step)
      key = jax.random.fold_in(jax.random.key(setting.seed), start)
      rolled = rollout(
        sample,
        weights,
        batch,
        key,
        terms,
        setting.tokenizer,
        setting.mesh,
        setting.layout.prefix,
      )
      groups = rolled.scores.verifiable.reshape(-1, config.samples_per_prompt)
      kept += batch.arrays.group[np.ptp(groups, axis=1) > 0].tolist()
    kept = sharding.gather_numbers(kept)
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      write_text(path, json.dumps(kept))
  if not kept:
    raise InputError(
      f"{folder.name}: all {config.pool} questions of config.policy.pool were "
      "answered all right or all wrong; raise it, or set it to 0"
    )
  return Subset(source, kept)


def trajectory_shapes(
  layout: Layout, config: PolicyConfig, terms: Sequence[str]
) -> Trajectories:
  """Shapes of the rows one rollout gives, for the buffer.

  Args:
    layout: of the data.
    config: of the stage.
    terms: names of the rules.
  """
  rows, length = config.rows, layout.completion_tokens
  names = [*terms, "learned"] if config.learned else terms
  shape = jax.ShapeDtypeStruct
  row = shape((rows,), jnp.float32)
  text = lambda dtype: shape((rows, length), dtype)
  return Trajectories(
    tokens=text(jnp.int32),
    mask=text(bool),
    logp=text(jnp.float32),
    group=shape((rows,), jnp.int32),
    rewards=row,
    verifiable=row,
    advantages=row,
    prompts=loader.prompt_shapes(layout, rows),
    reference_logp=text(jnp.float32) if config.has_reference else None,
    terms=dict.fromkeys(names, row),
  )


def make_update(
  setting: Setting,
  config: PolicyConfig,
  algorithm: Algorithm,
  controller: Any,
  optimizer: Any,
  layout: Any,
):
  """A jitted `(state, frozen, trajectories) -> (state, metrics, some rows)`.

  Args:
    setting, config: of the stage.
    algorithm: see `make_algorithm`.
    controller: of the learned reward's threshold, see `hold_in_band`.
    optimizer: optax.
    layout: of the state, which is donated.
  """
  everywhere = sharding.replicated(setting.mesh)
  return jax.jit(
    partial(_update, setting, config, algorithm, controller, optimizer),
    donate_argnums=0,
    out_shardings=(layout, everywhere, everywhere),
  )


def _update(
  setting, config, algorithm, controller, optimizer, state, frozen, trajectories
):
  """Rewards to advantages to optimizer steps, all in one program."""
  memory, control = state.algorithm
  mixed, memory = algorithm.transform.update(trajectories, memory)
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

  def learn(state, part):
    gradient, loss, metrics = accumulate_gradients(
      loss_fn, state.params, part, config.micro_batch, config.bounds
    )
    return apply_gradient(state, gradient, loss, metrics, optimizer)

  size = rows // sharding.batch_shards() // config.updates_per_rollout
  parts = split_rows((mixed, replayed), size)
  state, of_updates = jax.lax.scan(learn, state, parts)
  metrics = _summarize(of_updates) | _describe(trajectories, mixed, memory)
  if config.learned and config.learned.band:
    metrics["threshold"] = control.threshold
    _, control = controller.update(metrics["hallucination"], control)
  state = state._replace(algorithm=(memory, control))
  few = min(2 * config.samples_per_prompt, rows)  # two groups to read along
  return state, metrics, jax.tree.map(lambda x: x[:few], (mixed, replayed))


def _summarize(of_updates: Metrics) -> Metrics:
  """One number each for the updates of a step.

  Before the first one the sampler and the trainer have the same weights.
  """
  means = {name: jnp.mean(x) for name, x in of_updates.items()}
  return means | {
    "sampler_gap": of_updates["sampler_gap"][0],
    "bad_steps": of_updates["bad_steps"][-1],
  }


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
