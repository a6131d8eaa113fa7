"""The grain pipeline: examples to batches, shuffled, sharded, resumable."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from jaxrl_mm.data import images, patches, templates
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.sources import Example, Source
from jaxrl_mm.data.tokenizer import Tokenizer
from jaxrl_mm.errors import InputError
from jaxrl_mm.structs import Demonstrations, Pairs, Prompts

_ENDLESS = 1 << 60


@dataclasses.dataclass(frozen=True)
class Layout:
  """The static shapes every example is brought to.

  Attributes:
    prompt_tokens: S; a longer prompt is an error, never cut.
    completion_tokens: T.
    pictures: what becomes of pictures; None where the model sees none.
    markup: how the model's prompts hold them.
    prefix: what every answer begins with, for example `<think>\\n`; it stands
      at the end of the prompt, and only what follows is drawn or trained.
  """

  prompt_tokens: int
  completion_tokens: int
  pictures: images.Tiles | patches.Patching | None
  markup: templates.Markup = templates.INTERNVL
  prefix: str = ""


# Of one example, or with a leading axis of many.
Row = Prompts | Demonstrations | Pairs


class Batch(NamedTuple):
  """Numpy rows for the device beside what they are of, which stays behind."""

  arrays: Row
  examples: list[Any]


def encode_prompt(
  example: Example, number: int, tokenizer: Tokenizer, layout: Layout
) -> Prompts:
  """One row of `Prompts`, as numpy, without the batch axis.

  The features of a video take the place of image tokens too: the model knows
  one placeholder.
  """
  encoded = images.encode(example.pictures, layout.pictures, name=example.name)
  ids = templates.prompt_ids(
    tokenizer,
    example.question,
    encoded.tokens,
    name=example.name,
    markup=layout.markup,
    videos=[i for i, x in enumerate(example.pictures) if x.ndim == 4],
    prefix=layout.prefix,
    earlier=example.earlier,
  )
  room = layout.prompt_tokens - len(ids)
  if room < 0:
    raise InputError(
      f"sample {example.name}: its prompt has {len(ids)} tokens and "
      f"config.data.prompt_tokens is {layout.prompt_tokens}; raise it or lower "
      "config.data.max_tiles or config.data.max_pixels"
    )
  tokens, positions = np.array(ids, np.int32), None
  if encoded.grids is not None:
    image_token, *others = templates.placeholders(tokenizer, layout.markup)
    tokens = np.where(np.isin(tokens, others), np.int32(image_token), tokens)
    positions = patches.positions(
      tokens == image_token, encoded.grids, layout.pictures
    )
    positions = np.pad(positions, [(room, 0), (0, 0)])
  return Prompts(
    tokens=np.pad(tokens, (room, 0), constant_values=tokenizer.pad_token_id),
    mask=np.arange(layout.prompt_tokens) >= room,
    images=encoded.images,
    group=np.int32(number),
    positions=positions,
  )


def prompt_shapes(layout: Layout, rows: int) -> Prompts:
  """Shapes of a batch of `encode_prompt`'s rows, without a prompt."""
  blank = images.encode((), layout.pictures, name="")
  length = layout.prompt_tokens
  row = Prompts(
    tokens=np.zeros(length, np.int32),
    mask=np.zeros(length, bool),
    images=blank.images,
    group=np.int32(0),
    positions=None if blank.grids is None else np.zeros((length, 3), np.int32),
  )
  shape = lambda x: jax.ShapeDtypeStruct((rows, *np.shape(x)), x.dtype)
  return jax.tree.map(shape, row)


def encode_demonstration(
  example: Example, number: int, tokenizer: Tokenizer, layout: Layout
) -> Demonstrations:
  """One row of `Demonstrations`, as numpy, without the batch axis."""
  if not example.demonstration:
    raise InputError(
      f"sample {example.name} has no 'demonstration', which supervised "
      "training needs"
    )
  if not example.demonstration.startswith(layout.prefix):
    raise InputError(
      f"sample {example.name}: its demonstration does not begin with "
      f"config.data.prefix, {layout.prefix!r}; write it there, or set "
      "config.data.prefix to ''"
    )
  answer = example.demonstration.removeprefix(layout.prefix)
  ids = tok.completion_ids(tokenizer, answer)
  room = layout.completion_tokens - len(ids)
  if room < 0:
    raise InputError(
      f"sample {example.name}: its demonstration has {len(ids)} tokens and "
      f"config.data.completion_tokens is {layout.completion_tokens}; raise it"
    )
  return Demonstrations(
    prompts=encode_prompt(example, number, tokenizer, layout),
    tokens=np.array(ids + [tokenizer.pad_token_id] * room, np.int32),
    mask=np.arange(layout.completion_tokens) < len(ids),
  )


def stack(rows: Sequence[tuple[Row, Any]]) -> Batch:
  """Rows to one batch with a leading axis."""
  arrays = [row for row, _ in rows]
  return Batch(_stack(arrays), [of for _, of in rows])


def _stack(rows):
  first = rows[0]
  if first is None:
    return None
  if isinstance(first, tuple):
    return type(first)(*(_stack(column) for column in zip(*rows)))
  return np.stack(rows)


def batches(
  source: Source,
  encode,
  batch_size: int,
  *,
  seed: int,
  rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
  """Endless shuffled batches; each process reads only its own rows.

  The iterator has grain's `get_state()` and `set_state(state)`: a run that
  is continued sees the batches it would have seen, on any number of
  processes. `group` numbers the draws of the whole run, so no two rows of
  different draws share a number.

  Args:
    source: the examples.
    encode: `(example, number) -> row of arrays`.
    batch_size: rows of all processes.
    seed: of the shuffle, which differs from epoch to epoch.
    rows: which of them this process reads; None for all.
  """
  rows = range(batch_size) if rows is None else rows
  drawn = grain.MapDataset.source(source).seed(seed).shuffle().repeat()

  def read(index):
    batch, place = divmod(index, len(rows))
    number = batch * batch_size + rows[place]
    example = drawn[number]
    return encode(example, number), example

  dataset = grain.MapDataset.range(_ENDLESS).map(read)
  dataset = dataset.batch(len(rows), batch_fn=stack)
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  return iter(dataset.to_iter_dataset(options))
