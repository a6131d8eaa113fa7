"""What all stages that ask have in common.

The sampler of a run is compiled once for those that ask alike; what was drawn
goes to samples.jsonl, for people to read.
"""

import base64
import functools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool

from jaxrl_mm import sharding
from jaxrl_mm.data import images, loader
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.loader import Batch
from jaxrl_mm.data.sources import Example, Source
from jaxrl_mm.data.tokenizer import Tokenizer
from jaxrl_mm.metrics import append_lines
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.rollout import Sample
from jaxrl_mm.sampling.decode import Sampling
from jaxrl_mm.sampling.schedule import Schedule, make_sampler
from jaxrl_mm.sampling.stops import stop_strings
from jaxrl_mm.structs import Prompts, Trajectories
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


def ask(
  setting: Setting,
  sample: Sample,
  params: Params,
  examples: Sequence[Example],
  key: jax.Array,
  *,
  batch: int,
) -> tuple[list[str], list[int]]:
  """Answers to at most `batch` examples, all of them on every process.

  Args:
    setting: shared by all stages.
    sample: draws G completions a prompt.
    params: of the model.
    examples: at least one.
    key: of the draws.
    batch: prompts of the program, a multiple of the row shards; places that
      are left over are filled with examples again.

  Returns:
    Texts and their lengths in tokens, G for each example, side by side.
  """
  arrays = read_prompts(setting, examples, 0, batch).arrays
  prompts = sharding.to_device(arrays, setting.mesh)
  drawn = sample(params, prompts, key)
  count = len(drawn.tokens) // batch * len(examples)
  tokens, mask = (
    sharding.to_every_host(x)[:count] for x in (drawn.tokens, drawn.mask)
  )
  prefix = setting.layout.prefix
  texts = [prefix + text for text in tok.decode(setting.tokenizer, tokens)]
  return texts, mask.sum(axis=1).tolist()


def write_samples(
  setting: Setting,
  folder: Path,
  step: int,
  shown: Trajectories,
  replayed: Bool[np.ndarray, " B"],
) -> None:
  """Appends rollouts to samples.jsonl.

  The first line of each group has its picture, a base64 PNG; so has each
  replayed row, which is read apart from its group.

  Args:
    setting: shared by all stages.
    folder: of the stage.
    step: of the stage.
    shown: numpy rows.
    replayed: which of them come from a buffer.
  """
  read = partial(tok.decode, setting.tokenizer)
  columns = zip(read(shown.prompts.tokens), read(shown.tokens), replayed)
  with_picture = {*np.unique(shown.group, return_index=True)[1].tolist()}
  with_picture |= {*np.flatnonzero(replayed).tolist()}
  lines = [
    {
      "step": step,
      "group": int(shown.group[i]),
      "prompt": prompt,
      "completion": completion,
      "terms": {name: float(x[i]) for name, x in shown.terms.items()},
      "reward": float(shown.rewards[i]),
      "advantage": _advantage(shown, i),
      "replayed": bool(was_replayed),
    }
    | (_picture(setting, shown.prompts, i) if i in with_picture else {})
    for i, (prompt, completion, was_replayed) in enumerate(columns)
  ]
  append_lines(folder / "samples.jsonl", lines)


def _advantage(shown: Trajectories, row: int) -> float:
  """Of a row; the mean over its tokens where each has its own."""
  advantage = shown.advantages[row]
  return float(
    np.mean(advantage[shown.mask[row]] if np.ndim(advantage) else advantage)
  )


def _picture(setting: Setting, prompts: Prompts, row: int) -> dict[str, str]:
  """The first picture of a row, as far as its tiles show it."""
  if not isinstance(setting.layout.pictures, images.Tiles):
    return {}
  used = np.sum(prompts.tokens[row] == setting.image_token)
  tiles = prompts.images[row][: used // setting.layout.pictures.tokens]
  png = base64.b64encode(images.png(tiles)).decode() if len(tiles) else ""
  return {"image": png} if png else {}
