"""Reinforcement learning: sample, grade, replay, update."""

import dataclasses
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
from jaxrl_mm.models import vlm
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.optimizer import (
  OptimizerConfig,
  make_optimizer,
  split_trainable,
)
from jaxrl_mm.rewards import hybrid
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.rollout import Rollout, refill, rollout, uniform_groups
from jaxrl_mm.sampling.schedule import Schedule
from jaxrl_mm.sampling.weights import to_decode
from jaxrl_mm.structs import Metrics, Trajectories
from jaxrl_mm.train import journal
from jaxrl_mm.train.collect import make_score, make_token_logp
from jaxrl_mm.train.loop import Setting, init_state, process_batches, run_stage
from jaxrl_mm.train.sample import (
  make_sample,
  read_prompts,
  write_samples,
)
from jaxrl_mm.train.step import (
  accumulate_gradients,
  apply_gradient,
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
# One sample of a question is enough for them.
WITHOUT_GROUPS = ("reinforce", "reinforce_plus_plus", "stable_reinforce")


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
    micro_tokens: room for the tokens a device sees at once, into which rows are
      packed without padding and the prompt of neighbours once, see
      `micro_batches`; what rows leave of it is computed too. 0 counts rows
      alone.
    temperature, top_k, top_p: of the sampler.
    cache: form of keys and values in the sampler, see `decode.Sampling`.
    decode_weights: form of the weights in the sampler, see
      `sampling.weights.to_decode`. Where this or the cache is rounded, the
      trainer's own log-probs are computed too and weigh each token (truncated
      importance sampling); `sampler_gap` in the metrics is the difference.
    stop: strings that end an answer.
    refill: how often a step may ask further questions in place of those whose
      answers the rules find equal, see `rollout.refill`.
    schedule: how sampling is cut, see `Schedule`.
    algorithm: `name` and the arguments of that function in `algorithms`; the
      reference of a `kl_weight` is the policy the stage begins with.
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
  micro_tokens: int = 0
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
  def needs_reference(self) -> bool:
    """Whether the algorithm keeps the policy near that of the start."""
    return self.algorithm.get("kl_weight", 0) > 0

  @property
  def needs_trainer(self) -> bool:
    """Whether the sampler rounds: its log-probs are not the trainer's."""
    return not self.cache == self.decode_weights == "model"

  @property
  def updates(self) -> int:
    """Of the weights, in all steps."""
    return self.steps * self.updates_per_rollout


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
  algorithm = make_algorithm(config, setting.seed)
  trained, frozen = split_trainable(config.optimizer, params)
  optimizer = make_optimizer(config.optimizer, config.updates)
  learned = config.learned or LearnedConfig()
  controller = hold_in_band(learned.threshold or 0.0, learned.band)
  draw = _make_draw(setting, config, terms)
  if config.pool:
    source = filter_prompts(setting, config, params, source, draw, folder)
  shapes = trajectory_shapes(setting.layout, config, list(terms))
  add_logp = _make_logp(setting, config, trained, frozen)
  memory_of = lambda: algorithm.transform.init(optax.tree.zeros_like(shapes))
  state, layout = init_state(
    trained,
    optimizer,
    lambda: (memory_of(), controller.init(())),
    jax.random.key(setting.seed),
    setting.mesh,
  )
  update = make_update(
    setting, config, algorithm, controller, optimizer, layout
  )
  add_learned = _make_learned(setting, config, reward)
  batches = process_batches(
    setting, source, loader.encode_prompt, config.prompts_per_step
  )

  def learn(state, trajectories):
    trajectories = add_learned(trajectories, state.algorithm[1])
    trajectories = add_logp(trajectories, state.params)
    state, metrics, shown = update(state, frozen, trajectories)
    jax.block_until_ready(state.step)
    return state, metrics, shown

  def step(number, state, batch):
    key = jax.random.fold_in(state.key, number)
    whole = pytree.join(state.params, frozen)
    rolled, told = _collect(setting, config, draw, whole, batch, batches, key)
    del whole  # the update takes the trained weights away
    began = time.perf_counter()
    state, metrics, shown = learn(state, rolled.trajectories)
    told |= {"update_seconds": time.perf_counter() - began}
    if _is_due(number, config.samples_every):
      write_samples(setting, folder, number, *sharding.to_host(shown))
    if probe and config.probe_every and _is_due(number, config.probe_every):
      metrics |= probe(pytree.join(state.params, frozen))
    return state, metrics | told

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


# (weights for decoding, prompts, key) -> rollouts
Draw = Callable[[Params, loader.Batch, jax.Array], Rollout]


def _make_draw(
  setting: Setting, config: PolicyConfig, terms: Mapping[str, Term]
) -> Draw:
  """Samples and grades as the config says."""
  sample = make_sample(
    setting,
    samples_per_prompt=config.samples_per_prompt,
    temperature=config.temperature,
    top_k=config.top_k,
    top_p=config.top_p,
    cache=config.cache,
    stop=config.stop,
    schedule=config.schedule,
  )
  return lambda weights, batch, key: rollout(
    sample,
    weights,
    batch,
    key,
    terms,
    setting.tokenizer,
    setting.mesh,
    setting.layout.prefix,
  )


def _collect(setting, config, draw, params, batch, batches, key):
  """Rollouts of a step, refilled if the config asks for it; numbers of them."""
  began = time.perf_counter()
  weights = to_decode(setting.model, params, config.decode_weights)
  jax.block_until_ready(weights)
  told = {"reshard_seconds": time.perf_counter() - began}
  rolled = draw(weights, batch, key)
  if config.refill:
    more = lambda number: draw(
      weights, next(batches), jax.random.fold_in(key, number)
    )
    rolled, refilled = _refill(setting, config, rolled, more)
    told |= refilled
  return rolled, told | {
    "sample_seconds": rolled.sample_seconds,
    "reward_seconds": rolled.reward_seconds,
    "grader_failures": sharding.sum_over_processes(
      float(sum(rolled.scores.failures.values()))
    ),
  }


def _refill(setting, config, rolled, more):
  """Other questions in place of those that teach nothing."""
  samples = config.samples_per_prompt
  first, rounds = rolled.scores.total.mean(), 0
  while (missing := uniform_groups(rolled, samples)) and rounds < config.refill:
    rounds += 1
    rolled = refill(rolled, more(rounds), samples, setting.mesh)
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


def _is_due(number: int, every: int) -> bool:
  """At the first step, and every `every` steps from there."""
  return number % every == 1 % every


def _make_learned(setting, config, reward):
  """A function that adds the learned term to the reward of trajectories."""
  learned = config.learned
  if learned is None:
    return lambda t, control: t
  at_once = config.micro_batch, config.micro_tokens
  score = make_score(setting, config.samples_per_prompt, *at_once)
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


def _make_logp(setting, config, trained, frozen):
  """A function that adds the log-probs that the algorithm asks for.

  The reference is the policy that the stage begins with: the frozen weights,
  and a second copy of the trained ones alone.
  """
  reference = (
    jax.tree.map(jnp.copy, trained) if config.needs_reference else None
  )
  at_once = config.micro_batch, config.micro_tokens
  samples, temperature = config.samples_per_prompt, config.temperature
  logp = make_token_logp(setting, samples, *at_once, temperature)

  def add_logp(t, params):
    of = lambda weights: logp(
      pytree.join(weights, frozen), t.prompts, t.tokens, t.mask
    )
    if config.needs_reference:
      t = t._replace(reference_logp=of(reference))
    if config.needs_trainer:
      t = t._replace(trainer_logp=of(params))
    return t

  return add_logp


def _add_term(weight, t: Trajectories, learned) -> Trajectories:
  """What the rules decided stays what the buffer goes by."""
  rewards = t.rewards + weight * learned
  return t._replace(rewards=rewards, terms=t.terms | {"learned": learned})


# What decides which questions of the pool are kept.
_OF_POOL = (
  "prompts_per_step",
  "samples_per_prompt",
  "temperature",
  "top_k",
  "top_p",
  "cache",
  "decode_weights",
  "stop",
  "weights",
)


def filter_prompts(
  setting: Setting,
  config: PolicyConfig,
  params: Params,
  source: Source,
  draw: Draw,
  folder: Path,
) -> Source:
  """The questions of the pool that have something to teach before training.

  Skywork R1V2 (https://arxiv.org/abs/2504.16656, section 3.3) filters its
  prompts so once, by the policy it starts from. The numbers of those kept are
  in pool.jsonl, see `journal`.
  """

  def make(start):
    weights = to_decode(setting.model, params, config.decode_weights)
    batch = read_prompts(setting, source, start, config.prompts_per_step)
    key = jax.random.fold_in(jax.random.key(setting.seed), start)
    right = draw(weights, batch, key).scores.verifiable
    groups = right.reshape(-1, config.samples_per_prompt)
    useful = batch.arrays.group[np.ptp(groups, axis=1) > 0]
    return {"kept": sharding.gather_numbers(useful.tolist())}

  settings = dataclasses.asdict(config)
  asked = {name: settings[name] for name in _OF_POOL}
  starts = range(0, config.pool, config.prompts_per_step)
  batches = journal.keep(folder / "pool.jsonl", asked, starts, make)
  kept = [number for batch in batches for number in batch["kept"]]
  if not kept:
    raise InputError(
      f"{folder.name}: all {config.pool} questions of config.policy.pool were "
      "answered with equal rewards; raise it, or set it to 0"
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
  if_needed = lambda needed: text(jnp.float32) if needed else None
  return Trajectories(
    tokens=text(jnp.int32),
    mask=text(bool),
    logp=text(jnp.float32),
    group=shape((rows,), jnp.int32),
    rewards=row,
    verifiable=row,
    advantages=row,
    prompts=loader.prompt_shapes(layout, rows),
    terms=dict.fromkeys(names, row),
    reference_logp=if_needed(config.needs_reference),
    trainer_logp=if_needed(config.needs_trainer),
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
      room=config.micro_tokens,
    )
    loss, metrics = algorithm.loss(logp, t)
    weight, fresh = algorithm.weight(t), t.mask & ~replayed[:, None]
    # Over the weight, so that the metrics of a batch have the sums of it.
    summed = lambda x: masked.total(x, fresh) / jnp.maximum(weight, 1e-9)
    metrics = metrics | {
      "entropy": masked.mean(entropy, t.mask),
      "gap": summed(jnp.abs(logp - t.logp)),
      "fresh": summed(jnp.ones(fresh.shape)),
    }
    return loss, weight, metrics

  def learn(state, part):
    gradient, loss, metrics = accumulate_gradients(
      loss_fn, state.params, part, config.micro_batch, config.micro_tokens
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
  gap, fresh = (of_updates[name][0] for name in ("gap", "fresh"))
  del means["gap"], means["fresh"]
  return means | {
    "sampler_gap": gap / jnp.maximum(fresh, 1e-9),
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
