"""The demo's held-out questions as a benchmark that needs no download."""

import io
from pathlib import Path

from PIL import Image

from jaxrl_mm.data.sources import Digits, Example
from jaxrl_mm.evaluate import multimodal, prompts
from jaxrl_mm.evaluate.items import Benchmark, Item, Verdict
from jaxrl_mm.rewards import final
from jaxrl_mm.rewards import math as maths

SIZE = 1024


def read(folder: Path | None = None) -> list[Item]:
  """The questions that the demo is measured with; there is no folder."""
  del folder
  source = Digits("test", size=SIZE, seed=0)
  return [_item(source[i]) for i in range(SIZE)]


def _item(example: Example) -> Item:
  buffer = io.BytesIO()
  Image.fromarray(example.pictures[0]).save(buffer, "PNG")
  return Item(
    id=example.name,
    question=example.question,
    answer=example.answer,
    pictures=(buffer.getvalue(),),
    # "What is", "Which is" and "How many".
    category=" ".join(example.question.lower().split()[:2]),
  )


def grade(response: str, item: Item) -> Verdict:
  """1 for the right number between answer tags, as the demo's reward."""
  answer = final.answer_of(response)
  right = maths.exact([response], [item.answer])[0]
  return Verdict(float(right), answer)


DIGITS = Benchmark(
  read,
  prompts.bare,
  grade,
  multimodal.accuracy,
  "https://doi.org/10.24432/C50P49",
  judged=True,
)
