"""The reward model: a scalar head on the policy's backbone.

Skywork-VL Reward (https://arxiv.org/abs/2505.07263): Bradley-Terry on pairs,
vision tower frozen, in two data stages. The second is curated with the model
of the first: pairs it finds hard are added.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxrl_mm import losses
from jaxrl_mm.data import pairs
from jaxrl_mm.data.pairs import PairSource
from jaxrl_mm.data.sources import Source
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import vlm
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.train.collect import CollectConfig, collect, scoring
from jaxrl_mm.train.loop import Setting, train
from jaxrl_mm.train.step import flatten_pairs, make_train_step


@dataclasses.dataclass(frozen=True)
class RewardModelConfig:
  """Training of the reward model.

  Attributes:
    collect: how the pairs of each data stage are made.
    hard_below: a pair of the second data stage is one whose right answer the
      first stage's model puts less than this above the wrong one.
    steps: updates of a data stage.
    batch: pairs an update.
    micro_batch: pairs a device sees at once, at most.
    micro_tokens: room for the tokens a device sees at once, into which rows are
      packed without padding and the prompt of neighbours once, see
      `micro_batches`; what rows leave of it is computed too. 0 counts rows
      alone.
    second_rate: learning rate of the second data stage over the first's; the
      paper has 1e-5 and 1e-6.
    optimizer: of the first data stage.
  """

  collect: CollectConfig = CollectConfig()
  hard_below: float = 1.0
  steps: int = 100
  batch: int = 64
  micro_batch: int = 32
  micro_tokens: int = 0
  second_rate: float = 0.1
  optimizer: OptimizerConfig = OptimizerConfig(trainable="(?!vision/).*")


def run(
  setting: Setting,
  config: RewardModelConfig,
  policy: Params,
  source: Source,
  terms: Mapping[str, Term],
  folder: Path,
) -> Params:
  """Trains a copy of the policy's backbone to score its answers.

  Args:
    setting: shared by all stages.
    config: of this one.
    policy: the model whose answers are compared; it is kept.
    source: questions with answers; the first ones are asked.
    terms: rules, see `collect`.
    folder: of the stage.

  Returns:
    The weights of the reward model.
  """
  reward, known = init_params(setting, policy), []
  for part in (1, 2):
    records, _ = collect(
      setting,
      config.collect,
      policy,
      reward if part == 2 else None,
      source,
      terms,
      folder / f"pairs_{part}.jsonl",
      first=(part - 1) * config.collect.prompts,
      step=(part - 1) * config.steps,
      pick="widest" if part == 1 else "closest",
    )
    if part == 2:
      records = [r for r in records if r.gap < config.hard_below]
    known = known + records
    if not known:
      raise InputError(
        f"{folder.name}: no question had both right and wrong answers; raise "
        "config.reward_model.collect.prompts, or train the cold start longer "
        "in another --workdir"
      )
    data = PairSource(known, source)
    reward = _train(setting, config, reward, data, folder, part)
  return reward


def init_params(setting: Setting, policy: Params) -> Params:
  """A copy of the policy's backbone with a new value head."""

  def init(key):
    return {"value_head": vlm.init(scoring(setting.model), key)["value_head"]}

  key = jax.random.key(setting.seed)
  layout = param_shardings(setting.mesh, jax.eval_shape(init, key))
  head = jax.jit(init, out_shardings=layout)(key)
  return jax.tree.map(jnp.copy, policy) | head


def _train(setting, config, reward, source, folder, part) -> Params:
  """One data stage."""
  rate = config.optimizer.learning_rate * config.second_rate ** (part - 1)
  slower = dataclasses.replace(config.optimizer, learning_rate=rate)
  config = dataclasses.replace(config, optimizer=slower)
  return train(
    setting,
    config,
    reward,
    source,
    pairs.encode,
    partial(make_update, setting, config),
    folder,
    answers=2,
    headline=("loss", "accuracy"),
    part=f"part_{part}",
    before=(part - 1) * config.steps,
  )


def make_update(setting: Setting, config: RewardModelConfig, optimizer, layout):
  """The jitted step, see `make_train_step`; its batch is `Pairs`."""

  def loss_fn(params, rows):
    scores = vlm.score(
      scoring(setting.model),
      params,
      *flatten_pairs(rows),
      image_token=setting.image_token,
      samples_per_prompt=2,
      room=config.micro_tokens,
    )
    chosen, rejected = scores.reshape(-1, 2).T
    there = jnp.any(rows.mask, axis=(1, 2))
    loss, metrics = losses.reward_model.mean_without_ties(
      chosen, rejected, ~there
    )
    return loss, jnp.sum(there, dtype=jnp.float32), metrics

  sizes = config.micro_batch, layout, config.micro_tokens
  return make_train_step(loss_fn, optimizer, *sizes)


def pair_accuracy(
  setting: Setting,
  config: RewardModelConfig,
  policy: Params,
  reward: Params,
  source: Source,
  terms: Mapping[str, Term],
  folder: Path,
) -> float:
  """Share of held-out pairs whose right answer scores higher.

  The pairs are made and scored once, and then read from `folder`.

  Args:
    setting, config, policy, terms, folder: as in `run`.
    reward: the reward model.
    source: held-out questions.
  """
  records, _ = collect(
    setting,
    config.collect,
    policy,
    reward,
    source,
    terms,
    folder / "held_out.jsonl",
    first=0,
    step=2 * config.steps,
    pick="first",
  )
  if not records:
    return math.nan
  return statistics.fmean(record.gap > 0 for record in records)
