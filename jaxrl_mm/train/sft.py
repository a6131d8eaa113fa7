"""Supervised fine-tuning: the cold start."""

import dataclasses
from functools import partial
from pathlib import Path

import jax.numpy as jnp

from jaxrl_mm import losses, masked
from jaxrl_mm.data import loader
from jaxrl_mm.data.sources import Source
from jaxrl_mm.models import vlm
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train.loop import Setting, train
from jaxrl_mm.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class SftConfig:
  """The cold start.

  Attributes:
    steps: updates.
    batch: demonstrations an update.
    micro_batch: rows a device sees at once, at most.
    micro_tokens: room for the tokens a device sees at once, into which rows are
      packed without padding and the prompt of neighbours once, see
      `micro_batches`; what rows leave of it is computed too. 0 counts rows
      alone.
    optimizer: see `OptimizerConfig`.
  """

  steps: int = 500
  batch: int = 64
  micro_batch: int = 8
  micro_tokens: int = 0
  optimizer: OptimizerConfig = OptimizerConfig()


def run(
  setting: Setting,
  config: SftConfig,
  params: Params,
  source: Source,
  folder: Path,
  *,
  part: str = "",
  before: int = 0,
) -> Params:
  """Trains on the demonstrations of `source`.

  Args:
    setting: shared by all stages.
    config: of this one.
    params: weights on the mesh; they are given away.
    source: examples with demonstrations.
    folder: of the stage.
    part, before: see `run_stage`.

  Returns:
    The trained weights.
  """
  return train(
    setting,
    config,
    params,
    source,
    loader.encode_demonstration,
    partial(make_update, setting, config),
    folder,
    headline=("loss",),
    part=part,
    before=before,
  )


def make_update(setting: Setting, config: SftConfig, optimizer, layout):
  """The jitted step, see `make_train_step`; its batch is `Demonstrations`."""

  def loss_fn(params, rows):
    logp, entropy = vlm.completion_logp(
      setting.model,
      params,
      rows.prompts,
      rows.tokens,
      rows.mask,
      image_token=setting.image_token,
      room=config.micro_tokens,
    )
    tokens = jnp.sum(rows.mask).astype(jnp.float32)
    metrics = {"entropy": masked.mean(entropy, rows.mask)}
    return losses.supervised.cross_entropy(logp, rows.mask), tokens, metrics

  sizes = config.micro_batch, layout, config.micro_tokens
  return make_train_step(loss_fn, optimizer, *sizes)
