"""A question of a benchmark, and what a benchmark is."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxrl_mm.errors import InputError

# A file, the bytes of one, or the frames of a video in their order.
Picture = Path | bytes | tuple[Path, ...]


class Item(NamedTuple):
  """A question of any benchmark.

  Attributes:
    id: the benchmark's own name for it. Some benchmarks repeat theirs, so
      results are kept by row.
    question: the text the benchmark gives, without instructions.
    answer: the truth as text: a letter, a value, the better response's number.
    pictures: not yet decoded, see `pixels`.
    choices: the texts of A, B, C, ...; empty where there are none.
    responses: the two texts a judge compares, or empty.
    category: the benchmark's own class of questions, for its table.
    group: items with the same one count as right only together, where the
      benchmark has such a measure.
    details: what this benchmark's grader and prompt read besides.
  """

  id: str
  question: str
  answer: str
  pictures: tuple[Picture, ...] = ()
  choices: tuple[str, ...] = ()
  responses: tuple[str, ...] = ()
  category: str = ""
  group: str = ""
  details: Mapping[str, Any] = {}


class Verdict(NamedTuple):
  """What a grader says of a response.

  Attributes:
    score: in [0, 1].
    pick: what was answered, equal for equal answers so that it can be voted
      on; None where the response holds no answer, or none to vote on.
    parts: of a question that asks several things, whether each was done; for
      metrics that count those.
  """

  score: float
  pick: str | None
  parts: tuple[bool, ...] = ()


class Benchmark(NamedTuple):
  """All that is known of one benchmark; the functions can be pickled.

  Attributes:
    read: the folder that was downloaded, to items in its order.
    prompt: the text put to the model after the item's pictures.
    grade: `(response, item) -> Verdict`; never raises and never asks a model.
    metric: `(items, one verdict each) -> {name: value}`, the headline first,
      under "overall"; shares, not percents.
    paper: where the benchmark comes from.
    hub: where its folder is downloaded; empty where nothing is needed.
    files: patterns of which each has to match a file of the folder.
    judged: its answers can also be compared by a language model, as Skywork
      R1V2 does.
    follow: `(item, replies) -> texts`, of a benchmark with conversations: what
      user and model said in turn, the user's next words last; none where all
      is said, and none before the first reply to a question by itself. What is
      graded of a conversation is the JSON list of its replies.
  """

  read: Callable[[Path], list[Item]]
  prompt: Callable[[Item], str]
  grade: Callable[[str, Item], Verdict]
  metric: Callable[[Sequence[Item], Sequence[Verdict]], dict[str, float]]
  paper: str
  hub: str = ""
  files: tuple[str, ...] = ()
  judged: bool = False
  follow: Callable[[Item, Sequence[str]], tuple[str, ...]] | None = None


def pixels(picture: Picture) -> np.ndarray:
  """uint8 [height, width, 3], or [frames, height, width, 3] of a video.

  Raises:
    InputError: the picture cannot be read.
  """
  if isinstance(picture, tuple):
    return np.stack([pixels(frame) for frame in picture])
  source = io.BytesIO(picture) if isinstance(picture, bytes) else picture
  name = "bytes of a record" if isinstance(picture, bytes) else picture
  try:
    with Image.open(source) as image:
      return np.asarray(image.convert("RGB"))
  except Exception as error:  # Pillow raises all kinds on damaged files.
    raise InputError(
      f"cannot read the picture {name} ({error}); download it again"
    ) from error
