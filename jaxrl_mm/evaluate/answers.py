"""A model's answers to the questions of benchmarks, by the grouped sampler."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrl_mm import sharding
from jaxrl_mm.data import loader, patches, templates
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.images import Tiles
from jaxrl_mm.data.loader import Layout
from jaxrl_mm.data.patches import Patching
from jaxrl_mm.data.sources import Example
from jaxrl_mm.evaluate import items
from jaxrl_mm.evaluate.run import Answer, Ask
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.sampling.schedule import Schedule
from jaxrl_mm.structs import Number, Prompts
from jaxrl_mm.train.collect import make_score
from jaxrl_mm.train.loop import Setting
from jaxrl_mm.train.sample import make_sample

# Prompts are cut to a power of two of tokens, and no shorter.
_SHORTEST = 64


@dataclasses.dataclass(frozen=True)
class Drawing:
  """How answers are drawn.

  Attributes:
    samples: G, answers to each question.
    temperature, top_k, top_p: of the sampler.
    slots: answers written at once; see `Schedule`.
  """

  samples: int = 1
  temperature: Number = 0.0
  top_k: int = 0
  top_p: Number = 1.0
  slots: int = 256


def make_answer(setting: Setting, params: Params, drawing: Drawing) -> Answer:
  """A function from questions to answers, for `run.run_benchmark`.

  What is drawn for a question depends on the seed of the setting, and on the
  row and the turn of the first question of the call. Every process gets all
  questions and all answers.

  Args:
    setting: model, tokenizer and mesh; of the layout of the pictures only what
      holds for one picture counts, room is made for as many as there are.
    params: weights on the mesh, best those of `sampling.weights.to_decode`.
    drawing: how answers are drawn.
  """
  sample = make_sample(
    setting,
    samples_per_prompt=drawing.samples,
    temperature=drawing.temperature,
    top_k=drawing.top_k,
    top_p=drawing.top_p,
    schedule=Schedule(slots=drawing.slots),
  )

  def answer(asks: list[Ask]) -> list[list[str]]:
    prompts = encode(setting, [_example(ask, ask.text) for ask in asks])
    key = jax.random.fold_in(jax.random.key(setting.seed), asks[0].row)
    key = jax.random.fold_in(key, len(asks[0].earlier))
    drawn = sample(params, _to_device(setting, prompts), key)
    tokens = sharding.to_every_host(drawn.tokens)
    texts = tok.decode(setting.tokenizer, tokens)
    G = drawing.samples
    return [texts[i * G : (i + 1) * G] for i in range(len(asks))]

  return answer


def make_preference(setting: Setting, params: Params) -> Answer:
  """What a scalar reward model says of pairs: which response scores higher.

  It says so in the words of a judge, `<answer>1</answer>`, and nothing of two
  that score the same. A response is scored behind its question in the chat
  form, as Skywork-VL Reward has it (https://arxiv.org/abs/2505.07263).
  """
  # Long texts: one pair of a device at a time.
  score = make_score(setting, 2, micro_batch=2)

  def answer(asks: list[Ask]) -> list[list[str]]:
    questions = [_example(ask, ask.item.question) for ask in asks]
    prompts = encode(setting, questions)
    spare = [asks[0]] * (len(prompts.mask) - len(asks))
    pairs = [ask.item.responses for ask in (*asks, *spare)]
    tokens, mask = _completions(setting, [text for p in pairs for text in p])
    twice = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), prompts)
    rows = _to_device(setting, (twice, tokens, mask))
    scores = sharding.to_every_host(score(params, *rows)).reshape(-1, 2)
    return [[_preferred(*pair)] for pair in scores[: len(asks)]]

  return answer


def _to_device(setting: Setting, rows: Any) -> Any:
  """Rows that every process has, cut over all of them."""
  (count,) = {len(leaf) for leaf in jax.tree.leaves(rows)}
  own = sharding.local_rows(setting.mesh, count)
  return sharding.to_device(jax.tree.map(lambda x: x[own], rows), setting.mesh)


def _preferred(first: np.floating, second: np.floating) -> str:
  if first == second:
    return ""
  return f"<answer>{1 if first > second else 2}</answer>"


def _completions(setting: Setting, texts: Sequence[str]):
  """Responses as right-padded rows [B, T], T a power of two."""
  # The new line belongs to the turn in the chat form of Qwen2.
  end = setting.tokenizer.encode("\n", add_special_tokens=False)
  ids = [[*tok.completion_ids(setting.tokenizer, t), *end] for t in texts]
  length = _power_of_two(max(map(len, ids)))
  mask = np.array([np.arange(length) < len(row) for row in ids])
  tokens = np.full(mask.shape, setting.tokenizer.pad_token_id, np.int32)
  tokens[mask] = np.concatenate(ids)
  return tokens, mask


def _example(ask: Ask, text: str) -> Example:
  pictures = tuple(items.pixels(picture) for picture in ask.item.pictures)
  return Example(
    ask.item.id, pictures, text, ask.item.answer, earlier=ask.earlier
  )


def fits(setting: Setting, ask: Ask) -> bool:
  """Whether the layout has room for a question without pictures."""
  ids = templates.prompt_ids(
    setting.tokenizer,
    ask.text,
    (),
    name=ask.item.id,
    markup=setting.layout.markup,
    prefix=setting.layout.prefix,
    earlier=ask.earlier,
  )
  return len(ids) <= setting.layout.prompt_tokens


def encode(setting: Setting, examples: Sequence[Example]) -> Prompts:
  """Prompts as numpy, with no more room than these need; few different sizes.

  Filled up with the first one to a multiple of the batch shards.

  Raises:
    InputError: a prompt is longer than the layout allows.
  """
  layout = _layout(setting.layout, [e.pictures for e in examples])
  spare = -len(examples) % sharding.batch_shards()
  rows = [
    (loader.encode_prompt(e, number, setting.tokenizer, layout), e)
    for number, e in enumerate([*examples, *[examples[0]] * spare])
  ]
  prompts = loader.stack(rows).arrays
  longest = _power_of_two(int(prompts.mask.sum(axis=1).max()))
  cut = lambda x: None if x is None else x[:, -longest:]
  return prompts._replace(
    tokens=cut(prompts.tokens),
    mask=cut(prompts.mask),
    positions=cut(prompts.positions),
  )


def _power_of_two(length: int) -> int:
  return max(_SHORTEST, 1 << (length - 1).bit_length())


def _layout(layout: Layout, pictures) -> Layout:
  """Room for the pictures of these prompts; none where there are none."""
  most = max(map(len, pictures))
  how = layout.pictures
  if isinstance(how, Patching):
    moving = any(x.ndim == 4 for prompt in pictures for x in prompt)
    how = dataclasses.replace(how, frames=how.tower_frames if moving else 1)
    windows = max(sum(_windows(x, how) for x in prompt) for prompt in pictures)
    how = dataclasses.replace(how, windows=_power_of_two(windows))
  if isinstance(how, Tiles | Patching):
    how = dataclasses.replace(how, max_pictures=most) if most else None
  return dataclasses.replace(layout, pictures=how)


def _windows(picture: np.ndarray, how: Patching) -> int:
  """Windows that a picture or video takes; see `Patching.windows`."""
  height, width = patches.smart_size(
    *picture.shape[-3:-1],
    factor=how.patch_size * how.shuffle,
    min_pixels=how.min_pixels,
    max_pixels=how.max_pixels,
  )
  side = how.window * how.patch_size
  frames = len(picture) if picture.ndim == 4 else 1
  times = math.ceil(frames / how.tower_frames)
  return times * math.ceil(height / side) * math.ceil(width / side)
