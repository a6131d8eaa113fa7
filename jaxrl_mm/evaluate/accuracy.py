"""How often the model's greedy answer is right, on pictures held out."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax

from jaxrl_mm import sharding
from jaxrl_mm.data import loader
from jaxrl_mm.data.sources import Source
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.rollout import grade
from jaxrl_mm.sampling.decode import Sampling
from jaxrl_mm.sampling.schedule import make_sampler
from jaxrl_mm.train.loop import Setting


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """What is measured after each stage.

  Attributes:
    source: see `data.sources.open_source`.
    size: questions.
    batch: questions answered at once.
  """

  source: str = "digits/test"
  size: int = 1024
  batch: int = 512


def make_evaluator(
  setting: Setting,
  config: EvaluationConfig,
  source: Source,
  terms: Mapping[str, Term],
):
  """A function `params -> {term: mean over the held-out questions}`.

  The same questions each time, answered greedily. Compiled once for all
  stages.
  """
  answer = make_sampler(
    setting.model,
    Sampling(
      samples_per_prompt=1,
      max_tokens=setting.layout.completion_tokens,
      end_token=setting.tokenizer.eos_token_id,
      pad_token=setting.tokenizer.pad_token_id,
      image_token=setting.image_token,
      temperature=0.0,
    ),
  )
  encode = partial(
    loader.encode_prompt, tokenizer=setting.tokenizer, layout=setting.layout
  )

  def read(start: int) -> loader.Batch:
    numbers = range(start, start + config.batch)
    mine = numbers[jax.process_index() :: jax.process_count()]
    examples = ((i, source[i]) for i in mine)
    return loader.stack(
      [(encode(example, i), example) for i, example in examples]
    )

  # Read here, so that a bad picture stops the run before it trains.
  batches = [read(start) for start in range(0, config.size, config.batch)]

  def evaluate(params: Params) -> dict[str, float]:
    totals = {name: 0.0 for name in terms}
    for batch in batches:
      prompts = sharding.to_device(batch.arrays, setting.mesh)
      tokens = answer(params, prompts, jax.random.key(0)).tokens
      scores = grade(terms, setting.tokenizer, sharding.to_host(tokens), batch)
      for name, raw in scores.terms.items():
        totals[name] += sharding.sum_over_processes(float(raw.sum()))
    return {name: total / config.size for name, total in totals.items()}

  return evaluate
