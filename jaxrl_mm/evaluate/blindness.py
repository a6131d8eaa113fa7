"""Does the model look? The same questions with the picture taken away.

A model that answers from the question alone gives the same answer without its
picture, and finds its own words as likely.
"""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Int

from jaxrl_mm import sharding
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.sources import Source
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.rewards import format as form
from jaxrl_mm.sampling.weights import to_decode
from jaxrl_mm.structs import Patches
from jaxrl_mm.train.collect import make_logp
from jaxrl_mm.train.loop import Setting
from jaxrl_mm.train.sample import make_sample, read_prompts


def make_blindness(
  setting: Setting, source: Source, size: int, micro_batch: int
) -> Callable[[Params], dict[str, float]]:
  """A function from weights to three numbers on the first `size` questions.

  `blind_same` and `blind_swapped_same` are the shares of greedy answers that
  stay when the picture is black, and when it is another question's.
  `blind_gap` is by how much less likely the answer to the true picture becomes
  when that is black, in nats a token.

  Args:
    setting: shared by all stages.
    source: questions.
    size: how many; all are asked at once.
    micro_batch: answers a device scores at once, at most.

  Returns:
    The function; of a model of text alone it has nothing to tell.
  """
  if setting.layout.pictures is None:
    return lambda params: {}
  ask = make_sample(setting, samples_per_prompt=1, temperature=0.0)
  logp = make_logp(setting, 1, micro_batch)
  prompts = read_prompts(setting, source, 0, size).arrays
  black = blacken(prompts.images)
  counts = np.sum(prompts.tokens == setting.image_token, axis=1)
  other = jax.tree.map(lambda x: x[partners(counts)], prompts.images)
  kinds = [prompts._replace(images=x) for x in (prompts.images, black, other)]

  def answers(completions) -> list[str | None]:
    tokens = sharding.to_host(completions.tokens)
    return [form.answer_of(t) for t in tok.decode(setting.tokenizer, tokens)]

  def measure(params: Params) -> dict[str, float]:
    key, weights = jax.random.key(0), to_decode(setting.model, params)
    # Brought here: between two measurements the room is the training's.
    shown, dark, swapped = sharding.to_device(kinds, setting.mesh)
    drawn = ask(weights, shown, key)
    seen = answers(drawn)
    same = lambda asked: np.mean(
      [a == b for a, b in zip(seen, answers(ask(weights, asked, key)))]
    )
    rows = drawn.tokens, drawn.mask
    lost = logp(params, shown, *rows) - logp(params, dark, *rows)
    gap = sharding.to_host(lost).sum() / sharding.to_host(drawn.mask).sum()
    found = {
      "blind_same": same(dark),
      "blind_swapped_same": same(swapped),
      "blind_gap": gap,
    }
    return {
      name: sharding.mean_over_processes(float(x)) for name, x in found.items()
    }

  return measure


def blacken(images: Patches | np.ndarray | None) -> Patches | np.ndarray | None:
  """The same pictures without light; where their patches lie stays."""
  if isinstance(images, Patches):
    return images._replace(pixels=np.zeros_like(images.pixels))
  return jax.tree.map(np.zeros_like, images)


def partners(counts: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
  """For each row the next one with as many image tokens, in a ring.

  A row whose number no other has is its own partner.
  """
  order = np.arange(len(counts))
  for count in np.unique(counts):
    rows = np.flatnonzero(counts == count)
    order[rows] = np.roll(rows, -1)
  return order
