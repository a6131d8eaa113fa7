"""How often the model's greedy answer is right, on pictures held out."""

import dataclasses
from collections.abc import Mapping

import jax

from jaxrl_mm import preemption, sharding
from jaxrl_mm.data.sources import Source
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.rollout import grade
from jaxrl_mm.sampling.weights import to_decode
from jaxrl_mm.train.loop import Setting
from jaxrl_mm.train.sample import make_sample, read_prompts


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """What is measured after each stage.

  Attributes:
    source: see `data.sets.open_source`.
    size: questions.
    batch: questions answered at once.
    micro_batch: answers a device scores at once, at most.
  """

  source: str = "digits/test"
  size: int = 1024
  batch: int = 512
  micro_batch: int = 512


def make_evaluator(
  setting: Setting,
  config: EvaluationConfig,
  source: Source,
  terms: Mapping[str, Term],
):
  """A function `params -> {term: mean over the held-out questions}`.

  The same questions each time, answered greedily. Compiled once for all
  stages. Between batches it raises Preempted where the end of a run is near.
  """
  answer = make_sample(setting, samples_per_prompt=1, temperature=0.0)
  # Read here, so that a bad picture stops the run before it trains.
  batches = [
    read_prompts(setting, source, start, config.batch)
    for start in range(0, config.size, config.batch)
  ]

  def evaluate(params: Params) -> dict[str, float]:
    weights = to_decode(setting.model, params)
    totals = {name: 0.0 for name in terms}
    for number, batch in enumerate(batches):
      # The probes of a step, which would be lost, are of one batch.
      if number:
        preemption.check("held-out questions were not all asked")
      prompts = sharding.to_device(batch.arrays, setting.mesh)
      tokens = sharding.to_host(
        answer(weights, prompts, jax.random.key(0)).tokens
      )
      prefix = setting.layout.prefix
      scores = grade(terms, setting.tokenizer, tokens, batch, prefix)
      for name, raw in scores.terms.items():
        totals[name] += sharding.mean_over_processes(float(raw.mean()))
    return {name: total / len(batches) for name, total in totals.items()}

  return evaluate
