"""Asks a model, and prints its answer while it is written.

A published checkpoint, of any family:
  python -m jaxrl_mm.sample --model DIR --prompt "Who wrote Hamlet?"
With pictures, the first one first:
  python -m jaxrl_mm.sample --model DIR --image a.png --image b.png \\
    --prompt "What differs?"
What a run of ours has learned so far:
  python -m jaxrl_mm.sample --model runs/digits_r1v2 --image FILE \\
    --prompt "What is the sum?"
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrl_mm import inputs, sharding, weights
from jaxrl_mm.data import loader, pictures
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.sources import Example
from jaxrl_mm.data.tokenizer import Tokenizer
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.huggingface import families
from jaxrl_mm.sampling.decode import Sampling
from jaxrl_mm.sampling.schedule import Heard, Schedule, Stop, make_sampler
from jaxrl_mm.structs import Patches, Prompts
from jaxrl_mm.train.loop import Setting

TOKENS_AT_ONCE = 4  # few enough that the text seems to flow
ANY_LENGTH = 1 << 20  # tokens; the padding is cut off again


class Speed(NamedTuple):
  """How fast an answer came.

  Attributes:
    tokens: of the answer, its end included.
    first_seconds: until the first tokens, compilation included.
    rate: tokens a second from there; 0 where no more came.
  """

  tokens: int
  first_seconds: float
  rate: float


def sample(args: argparse.Namespace, write: Callable[[str], Any]) -> Speed:
  """Answers the question of a command line.

  Args:
    args: of `parse`.
    write: is given the text, some characters at a time.

  Raises:
    InputError: the folder holds no model, a picture cannot be read or the
      model sees none, or the question is too long.
  """
  look = lambda path: pictures.read(str(path), Path(), "--image")
  seen = [look(path) for path in args.image]
  e = describe(args.model, len(seen), args.max_tokens)
  if seen and e.model.vision is None:
    raise InputError(
      f"{args.model} is a model of text alone; leave out --image, or name a "
      "vision-language model"
    )
  mesh, ends = make_mesh(e.model), end_tokens(e)
  setting = inputs.make_setting(e, mesh)
  prompts = encode(setting, args.prompt, seen)
  check_length(e, prompts.tokens.shape[1], args.max_tokens)
  with jax.set_mesh(mesh):
    params = weights.of_folder(e, args.model, mesh)
    heard, speed = make_listener(setting.tokenizer, ends, write)
    answer = make_sampler(
      e.model,
      make_sampling(setting, args),
      Schedule(slots=1, segment=TOKENS_AT_ONCE, block=args.max_tokens),
      make_stop(ends),
    )
    answer(params, prompts, jax.random.key(args.seed), heard=heard)
  return speed()


def make_sampling(setting: Setting, args: argparse.Namespace) -> Sampling:
  """One answer, drawn as the command line says."""
  return Sampling(
    samples_per_prompt=1,
    max_tokens=args.max_tokens,
    end_token=setting.tokenizer.eos_token_id,
    pad_token=setting.tokenizer.pad_token_id,
    image_token=setting.image_token,
    temperature=args.temperature,
  )


def describe(folder: Path, pictures: int, max_tokens: int) -> Experiment:
  """The model of a run or of a published checkpoint, with room to answer."""
  e = weights.describe(folder)
  data = dataclasses.replace(
    e.data,
    prompt_tokens=ANY_LENGTH,
    completion_tokens=max_tokens,
    max_pictures=pictures,
    # The longest strip takes a window for every four image tokens.
    windows=max(pictures * e.data.max_pixels // 28**2 // 4, 1),
  )
  return dataclasses.replace(e, data=data)


def make_mesh(model: ModelConfig) -> Mesh:
  """As many devices as the weights can be cut over, for one row has one."""
  d, devices = model.decoder, jax.local_devices()
  count = math.gcd(len(devices), d.kv_heads, d.vocab, d.mlp)
  return sharding.make_mesh(1, 1, count, devices[:count])


def encode(
  setting: Setting, question: str, seen: Sequence[np.ndarray]
) -> Prompts:
  """One prompt without padding and without room for more pictures."""
  example = Example("--prompt", tuple(seen), question, "")
  row = loader.encode_prompt(example, 0, setting.tokenizer, setting.layout)
  row = row._replace(
    tokens=row.tokens[row.mask],
    mask=row.mask[row.mask],
    positions=None if row.positions is None else row.positions[row.mask],
    images=_used(setting, row) if seen else None,
  )
  return jax.tree.map(lambda x: x[None], row)


def _used(setting, row):
  """The tiles or windows that hold a picture."""
  layout = setting.layout.pictures
  if isinstance(row.images, Patches):
    pixels, place, frame, order = row.images
    count = np.sum(frame >= 0)
    order = order[: count * layout.tokens_per_window]
    return Patches(pixels[:count], place[:count], frame[:count], order)
  tokens = np.sum(row.tokens == setting.image_token)
  return row.images[: tokens // layout.tokens]


def check_length(e: Experiment, prompt_tokens: int, max_tokens: int) -> None:
  """Raises InputError if the published model was not made for so much."""
  most = families.read_context(Path(e.pretrained)) if e.pretrained else None
  if most is not None and prompt_tokens + max_tokens > most:
    raise InputError(
      f"the prompt with its pictures has {prompt_tokens} tokens, the answer "
      f"may have {max_tokens}, and {e.pretrained} reads {most} in all; shorten "
      "--prompt or lower --max_tokens"
    )


def end_tokens(e: Experiment) -> set[int]:
  """The tokens that generation_config.json ends an answer with, if it does."""
  path = Path(e.pretrained) / "generation_config.json"
  if not e.pretrained or not path.exists():
    return set()
  ends = json.loads(path.read_text()).get("eos_token_id")
  return set(ends) if isinstance(ends, list) else {ends} - {None}


def make_stop(ends: set[int]) -> Stop:
  """A function that ends a row behind the first of these tokens."""

  def stop(tokens: np.ndarray, _: int) -> int | None:
    found = np.flatnonzero(np.isin(tokens, list(ends)))
    return int(found[0]) + 1 if found.size else None

  return stop


def make_listener(
  tokenizer: Tokenizer, ends: set[int], write: Callable[[str], Any]
) -> tuple[Heard, Callable[[], Speed]]:
  """A function that hears tokens and writes text, and one that tells how fast.

  A character may be made of several tokens: it is written when it is whole.
  """
  began = time.perf_counter()
  ids, times, shown = [], [], 0

  def heard(_: int, tokens: np.ndarray) -> None:
    nonlocal shown
    ids.extend(tokens)
    times.append((len(ids), time.perf_counter() - began))
    words = [i for i in ids if i not in ends]
    text = tok.decode(tokenizer, [words])[0].rstrip("\ufffd")
    write(text[shown:])
    shown = len(text)

  def speed() -> Speed:
    (early, first), (total, last) = times[0], times[-1]
    rate = (total - early) / (last - first) if total > early else 0.0
    return Speed(total, first, rate)

  return heard, speed


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    prog="python -m jaxrl_mm.sample",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--model", type=Path, required=True, metavar="DIR")
  parser.add_argument("--prompt", required=True, metavar="TEXT")
  parser.add_argument(
    "--image", type=Path, action="append", default=[], metavar="FILE"
  )
  parser.add_argument("--max_tokens", type=int, default=256, metavar="N")
  parser.add_argument(
    "--temperature",
    type=float,
    default=0.0,
    metavar="T",
    help="0 draws nothing",
  )
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  if args.max_tokens < 1 or args.temperature < 0:
    parser.error("--max_tokens is at least 1 and --temperature at least 0")
  return args


def main() -> None:
  """Reads the command line and answers."""
  try:
    speed = sample(parse(), lambda text: print(text, end="", flush=True))
  except InputError as error:
    sys.exit(f"error: {error}")
  print(
    f"\n{speed.tokens} tokens; the first after {speed.first_seconds:.1f} s, "
    f"then {speed.rate:.1f} tokens/s",
    file=sys.stderr,
  )


if __name__ == "__main__":
  main()
