"""Mixed Preference Optimization, in rounds.

Skywork R1V2 (https://arxiv.org/abs/2504.16656, section 3.1). Each round asks
the policy of its start, pairs what it wrote (see `collect`), keeps the pairs
whose scores are at least the threshold apart, and trains on them; the policy
of the round's start is the reference, its log-probs come with the pairs.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxrl_mm import losses, pytree, sharding
from jaxrl_mm.algorithms.calibrate import Band, hold_in_band
from jaxrl_mm.data import pairs
from jaxrl_mm.data.pairs import PairSource
from jaxrl_mm.data.sources import Source
from jaxrl_mm.errors import InputError
from jaxrl_mm.metrics import append_lines, keep_until
from jaxrl_mm.models import vlm
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.train.collect import CollectConfig, collect
from jaxrl_mm.train.loop import Setting, train
from jaxrl_mm.train.step import (
  accumulate_gradients,
  apply_gradient,
  flatten_pairs,
)


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
  """MPO.

  Attributes:
    collect: how the pairs of a round are made.
    threshold: a pair is kept whose scores are at least this far apart.
    band: of the hallucination rate; None leaves the threshold where it is.
    rounds: of asking and training.
    steps: updates of a round.
    batch: pairs an update.
    micro_batch: pairs a device sees at once, at most.
    micro_tokens: room for the tokens a device sees at once, into which rows are
      packed without padding and the prompt of neighbours once, see
      `micro_batches`; what rows leave of it is computed too. 0 counts rows
      alone.
    beta, weights: of `losses.preference.mpo`.
    optimizer: see `OptimizerConfig`.
  """

  collect: CollectConfig = CollectConfig()
  threshold: float = 0.0
  band: Band | None = None
  rounds: int = 2
  steps: int = 50
  batch: int = 64
  micro_batch: int = 32
  micro_tokens: int = 0
  beta: float = 0.1
  weights: tuple[float, float, float] = (0.8, 0.2, 1.0)
  optimizer: OptimizerConfig = OptimizerConfig()


def run(
  setting: Setting,
  config: PreferenceConfig,
  params: Params,
  reward: Params | None,
  source: Source,
  terms: Mapping[str, Term],
  folder: Path,
  *,
  first: int,
) -> Params:
  """Trains the policy on pairs of its own answers.

  Args:
    setting: shared by all stages.
    config: of this one.
    params: weights on the mesh; they are given away.
    reward: the reward model; without one every pair has gap 0.
    source: questions with answers.
    terms: rules, see `collect`; "hallucination" moves the threshold.
    folder: of the stage.
    first: number of the first question; those before it trained the reward
      model, which knows them too well.

  Returns:
    The trained weights.
  """
  controller = hold_in_band(config.threshold, config.band)
  control = controller.init(())
  for number in range(1, config.rounds + 1):
    records, told = collect(
      setting,
      config.collect,
      params,
      reward,
      source,
      terms,
      folder / f"pairs_{number}.jsonl",
      first=first + (number - 1) * config.collect.prompts,
      step=(number - 1) * config.steps,
    )
    threshold, control = controller.update(
      told.get("hallucination", 0.0), control
    )
    kept = [r for r in records if r.gap >= float(threshold)]
    told = {"threshold": float(threshold)} | told
    _tell(folder, number, len(records), len(kept), told)
    if not kept:
      again = f", after you have deleted {folder}" if number > 1 else ""
      raise InputError(
        f"{folder.name}: of {len(records)} pairs of round {number} none has a "
        f"score gap of {float(threshold):.2f}; lower config.preference."
        f"threshold or raise config.preference.collect.prompts{again}"
      )
    params = _train(
      setting, config, params, PairSource(kept, source), folder, number, told
    )
  return params


def _tell(folder, number, found, kept, told):
  """What a round trains on, in rounds.jsonl."""
  folder.mkdir(parents=True, exist_ok=True)
  keep_until(folder / "rounds.jsonl", number - 1)
  line = {"step": number, "pairs": found, "kept": kept}
  append_lines(folder / "rounds.jsonl", [line | told])


def _train(setting, config, params, source, folder, number, told) -> Params:
  """One round; `told` of it stands in each line of the metrics."""
  shift = losses.preference.reward_shift()
  return train(
    setting,
    config,
    params,
    source,
    pairs.encode,
    lambda optimizer, layout: make_update(
      setting, config, optimizer, shift, layout
    ),
    folder,
    answers=2,
    algorithm_init=lambda: shift.init(()),
    told=told,
    headline=("loss", "accuracy"),
    part=f"round_{number}",
    before=(number - 1) * config.steps,
  )


def make_update(
  setting: Setting, config: PreferenceConfig, optimizer, shift, layout
):
  """A jitted `(state, frozen, pairs) -> (state, metrics)`.

  Args:
    setting, config: of the stage.
    optimizer: optax.
    shift: see `losses.preference.reward_shift`.
    layout: of the state, which is donated.
  """
  return jax.jit(
    partial(_update, setting, config, optimizer, shift),
    donate_argnums=0,
    out_shardings=(layout, sharding.replicated(setting.mesh)),
  )


def _update(setting, config, optimizer, shift, state, frozen, batch):
  """One optimizer step; the shift is the average of the steps before it."""

  def loss_fn(trained, rows):
    prompts, tokens, mask = flatten_pairs(rows)
    logp, _ = vlm.completion_logp(
      setting.model,
      pytree.join(trained, frozen),
      prompts,
      tokens,
      mask,
      image_token=setting.image_token,
      samples_per_prompt=2,
      room=config.micro_tokens,
    )
    logp = jnp.sum(jnp.where(mask, logp, 0), axis=1).reshape(-1, 2)
    there = jnp.any(rows.mask, axis=(1, 2))
    loss, metrics = losses.preference.mpo(
      *logp.T,
      *rows.reference_logp.T,
      jnp.sum(rows.mask[:, 0], axis=1),
      state.algorithm.mean,
      beta=config.beta,
      weights=config.weights,
      present=there,
    )
    return loss, jnp.sum(there, dtype=jnp.float32), metrics

  gradient, loss, metrics = accumulate_gradients(
    loss_fn, state.params, batch, config.micro_batch, config.micro_tokens
  )
  rewards = jnp.stack([metrics["reward_chosen"], metrics["reward_rejected"]])
  _, memory = shift.update(rewards, state.algorithm)
  return apply_gradient(
    state._replace(algorithm=memory), gradient, loss, metrics, optimizer
  )
