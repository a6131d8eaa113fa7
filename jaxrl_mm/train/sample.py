"""The sampler of a run, compiled once for all stages that ask alike."""

import functools

from jaxrl_mm import sharding
from jaxrl_mm.data import loader
from jaxrl_mm.data.loader import Batch
from jaxrl_mm.data.sources import Source
from jaxrl_mm.data.tokenizer import Tokenizer
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.rollout import Sample
from jaxrl_mm.sampling.decode import Sampling
from jaxrl_mm.sampling.schedule import Schedule, make_sampler
from jaxrl_mm.sampling.stops import stop_strings
from jaxrl_mm.train.loop import Setting

_WHOLE = Schedule()


def make_sample(
  setting: Setting,
  *,
  samples_per_prompt: int,
  temperature: float,
  top_k: int = 0,
  top_p: float = 1.0,
  cache: str = "model",
  stop: tuple[str, ...] = (),
  schedule: Schedule = _WHOLE,
) -> Sample:
  """A function `(params, prompts, key) -> completions`; see `make_sampler`.

  The weights are best those of `sampling.weights.to_decode`. `stop` are the
  strings that end a row, see `stops.stop_strings`.
  """
  sampling = Sampling(
    samples_per_prompt=samples_per_prompt,
    max_tokens=setting.layout.completion_tokens,
    end_token=setting.tokenizer.eos_token_id,
    pad_token=setting.tokenizer.pad_token_id,
    image_token=setting.image_token,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    cache=cache,
  )
  return _sampler(setting.model, sampling, schedule, setting.tokenizer, stop)


@functools.cache
def _sampler(
  model: ModelConfig,
  sampling: Sampling,
  schedule: Schedule,
  tokenizer: Tokenizer,
  strings: tuple[str, ...],
) -> Sample:
  stop = stop_strings(tokenizer, strings) if strings else None
  return make_sampler(model, sampling, schedule, stop)


def read_prompts(
  setting: Setting, source: Source, start: int, count: int
) -> Batch:
  """This process's part of questions start, start + 1, ... of a source.

  Behind the last question of a file comes its first. `group` is the number
  of the question.
  """
  rows = []
  for place in sharding.local_rows(setting.mesh, count):
    number = start + place
    example = source[number % len(source)]
    prompt = loader.encode_prompt(
      example, number, setting.tokenizer, setting.layout
    )
    rows.append((prompt, example))
  return loader.stack(rows)
