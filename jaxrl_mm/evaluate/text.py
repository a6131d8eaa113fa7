"""Benchmarks without pictures: AIME, GPQA and IFEval."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import multimodal, prompts, records
from jaxrl_mm.evaluate.items import Benchmark, Item, Verdict
from jaxrl_mm.evaluate.records import Record
from jaxrl_mm.rewards import final, instructions


# ------------------------------------------------------------- AIME 2024
def read_aime(folder: Path) -> list[Item]:
  """AIME 2024's thirty problems, with ID, Problem and Answer."""
  return [
    Item(
      id=str(record.values.get("ID")),
      question=records.get(record, "Problem", str),
      answer=str(record.values.get("Answer")),
    )
    for record in records.read(folder)
  ]


def grade_aime(response: str, item: Item) -> Verdict:
  """1 for the right whole number, in any form."""
  answer = final.answer_of(response)
  value = final.number(answer, bare=True) if answer else None
  if value is None or not value.is_integer():
    return Verdict(0.0, None)
  return Verdict(float(value == int(item.answer)), str(int(value)))


# ------------------------------------------------------------------ GPQA
def read_gpqa(folder: Path) -> list[Item]:
  """GPQA Diamond: `gpqa_diamond.csv` (https://arxiv.org/abs/2311.12022).

  The file has the right answer first; the options come in an order drawn from
  the record's id.
  """
  path = Path(folder) / "gpqa_diamond.csv"
  return [_gpqa_item(record) for record in records.read_file(path)]


def _gpqa_item(record: Record) -> Item:
  keys = ["Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))]
  texts = [records.get(record, key, str).strip() for key in keys]
  name = records.get(record, "Record ID", str)
  draw = lambda i: hashlib.sha256(f"{name}/{i}".encode()).digest()
  order = sorted(range(4), key=draw)
  return Item(
    id=name,
    question=records.get(record, "Question", str).strip(),
    answer=prompts.LETTERS[order.index(0)],
    choices=tuple(texts[i] for i in order),
    category=record.values.get("High-level domain") or "",
  )


# ---------------------------------------------------------------- IFEval
def read_ifeval(folder: Path) -> list[Item]:
  """IFEval: JSON lines of key, prompt, instruction_id_list and kwargs.

  https://arxiv.org/abs/2311.07911, 541 prompts.
  """
  items = [_ifeval_item(record) for record in records.read(folder)]
  names = {name for item in items for name in item.details["names"]}
  if any("language" in name or "english" in name for name in names):
    # Said before the model has answered.
    instructions.detector_module()
  return items


def _ifeval_item(record: Record) -> Item:
  names = records.get(record, "instruction_id_list", list)
  given = records.get(record, "kwargs", list)
  unknown = [name for name in names if name not in instructions.CHECKS]
  if unknown or len(names) != len(given):
    raise InputError(
      f"{record.where}: {unknown[0] if unknown else 'kwargs'} does not fit the "
      "instructions known here; is this the published file?"
    )
  return Item(
    id=str(record.values.get("key")),
    question=records.get(record, "prompt", str),
    answer="",
    details={"names": names, "given": [args or {} for args in given]},
  )


def grade_ifeval(response: str, item: Item) -> Verdict:
  """1 where all instructions are kept, strictly.

  The parts are the instructions strictly, then loosely.
  """
  text = response.rpartition("</think>")[2].lstrip()
  names, given = item.details["names"], item.details["given"]
  strict = instructions.kept(text, names, given, loose=False)
  loose = instructions.kept(text, names, given, loose=True)
  return Verdict(float(all(strict)), None, (*strict, *loose))


def ifeval_metric(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """Prompts with all instructions kept ("overall": strictly), and single
  instructions, both strictly and loosely."""
  halves = [(p[: len(p) // 2], p[len(p) // 2 :]) for _, _, p in verdicts]
  strict, loose = zip(*halves)
  of_all = lambda parts: float(np.mean([all(p) for p in parts]))
  of_each = lambda parts: float(np.mean([x for p in parts for x in p]))
  return {
    "overall": of_all(strict),
    "instruction strict": of_each(strict),
    "prompt loose": of_all(loose),
    "instruction loose": of_each(loose),
  }


AIME_2024 = Benchmark(
  read_aime,
  prompts.reasoned,
  grade_aime,
  multimodal.accuracy,
  "https://arxiv.org/abs/2504.16656",
  hub="Maxwell-Jia/AIME_2024",
  files=("**/aime_2024_problems.*",),
  judged=True,
)
GPQA = Benchmark(
  read_gpqa,
  prompts.reasoned,
  multimodal.grade_letter,
  multimodal.accuracy,
  "https://arxiv.org/abs/2311.12022",
  hub="Idavidrein/gpqa",
  files=("gpqa_diamond.csv",),
  judged=True,
)
IFEVAL = Benchmark(
  read_ifeval,
  prompts.bare,
  grade_ifeval,
  ifeval_metric,
  "https://arxiv.org/abs/2311.07911",
  hub="google/IFEval",
  files=("**/*.jsonl",),
)
