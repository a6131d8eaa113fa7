"""Exams with pictures: MMMU, MMMU-Pro, MathVista, MathVision, OlympiadBench."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import metrics, prompts, records
from jaxrl_mm.evaluate.items import Benchmark, Item, Verdict
from jaxrl_mm.evaluate.records import Record
from jaxrl_mm.rewards import choice, final, olympiad, typed
from jaxrl_mm.rewards import math as maths

_IMAGES = [f"image_{i}" for i in range(1, 10)]
_UNREAD = Verdict(0.0, None)


def accuracy(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """Mean over all items, then over those of each category with a name."""
  scores = [v.score for v in verdicts]
  groups = metrics.by_category([i.category for i in items], scores)
  groups.pop("", None)
  return {"overall": float(np.mean(scores)), **groups}


def grade_letter(response: str, item: Item) -> Verdict:
  """1 where the right option was picked, by its letter or its text."""
  pick = choice.option_of(response, item.choices)
  return Verdict(float(pick == item.answer), pick)


def _literal(record: Record, key: str) -> list[str]:
  """A list that the file holds as the text of a Python list, or as a list."""
  value = record.values.get(key)
  try:
    value = final.literal(value) if isinstance(value, str) else value
  except (ValueError, SyntaxError) as error:
    raise InputError(
      f"{record.where}: '{key}' is no list; is this the published file?"
    ) from error
  return [str(element) for element in value or []]


# ------------------------------------------------------------------ MMMU
# https://arxiv.org/abs/2311.16502, table 2.
_DISCIPLINES = {
  "Art & Design": "Art Art_Theory Design Music",
  "Business": "Accounting Economics Finance Manage Marketing",
  "Science": "Biology Chemistry Geography Math Physics",
  "Health & Medicine": (
    "Basic_Medical_Science Clinical_Medicine "
    "Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health"
  ),
  "Humanities & Social Science": "History Literature Psychology Sociology",
  "Tech & Engineering": (
    "Agriculture Architecture_and_Engineering Computer_Science Electronics "
    "Energy_and_Power Materials Mechanical_Engineering"
  ),
}
_DISCIPLINE_OF = {
  s: d for d, all_ in _DISCIPLINES.items() for s in all_.split()
}


def read_mmmu(folder: Path) -> list[Item]:
  """MMMU's validation split: a folder a subject with its parquet file."""
  found = records.read(folder, "validation")
  return [_mmmu_item(folder, record) for record in found]


def _mmmu_item(folder: Path, record: Record) -> Item:
  name = records.get(record, "id", str)
  subject = name.split("_", 1)[1].rpartition("_")[0] if "_" in name else ""
  answer = records.get(record, "answer", str)
  several = answer.startswith("[") and record.values.get("question_type") != (
    "multiple-choice"
  )
  return Item(
    id=name,
    question=records.get(record, "question", str),
    answer=answer,
    pictures=records.pictures(folder, record, _IMAGES),
    choices=tuple(_literal(record, "options")),
    category=_DISCIPLINE_OF.get(subject, "other"),
    details={"answers": _literal(record, "answer") if several else [answer]},
  )


def grade_mmmu(response: str, item: Item) -> Verdict:
  """By letter; an open answer by number, words or mathematics.

  The released script looks for the truth anywhere in the key sentences of a
  response; here only the final answer counts.
  """
  if item.choices:
    return grade_letter(response, item)
  answer = final.answer_of(response)
  if answer is None:
    return _UNREAD
  right = any(_same_open(answer, truth) for truth in item.details["answers"])
  return Verdict(float(right), _pick(answer))


def _same_open(answer: str, truth: str) -> bool:
  """Numbers agree after rounding to two decimals, as the released script's."""
  if final.words(answer) == final.words(truth) != "":
    return True
  if typed.equal(answer, truth, "float", decimals=2):
    return True
  return maths.equal(final.plain(answer), final.plain(truth))


def _pick(answer: str) -> str | None:
  """One spelling for equal numbers and equal words, to vote on."""
  value = final.number(answer)
  return f"{value:.10g}" if value is not None else final.words(answer) or None


# -------------------------------------------------------------- MMMU-Pro
def read_mmmu_pro(folder: Path) -> list[Item]:
  """MMMU-Pro's folders "standard (10 options)" and "vision".

  https://arxiv.org/abs/2409.02813. The one of four options is not in its score.
  """
  items = []
  for kind in ("standard (10 options)", "vision"):
    path = Path(folder) / kind
    items += [_mmmu_pro_item(path, r, kind) for r in records.read(path)]
  return items


def _mmmu_pro_item(folder: Path, record: Record, kind: str) -> Item:
  inside = "The question and its options are in the picture."
  seen = kind == "vision"
  return Item(
    id=records.get(record, "id", str),
    question=inside if seen else records.get(record, "question", str),
    answer=records.get(record, "answer", str),
    pictures=records.pictures(folder, record, ["image", *_IMAGES]),
    choices=tuple(_literal(record, "options")),
    category=kind.split()[0],
  )


def prompt_mmmu_pro(item: Item) -> str:
  """Options are written out only where the picture does not show them."""
  shown = item._replace(choices=()) if item.category == "vision" else item
  return prompts.reasoned(shown)


def mmmu_pro_metric(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """The mean of the two settings, and each."""
  found = accuracy(items, verdicts)
  settings = {k: v for k, v in found.items() if k != "overall"}
  return {"overall": float(np.mean(list(settings.values()))), **settings}


# ------------------------------------------------------------- MathVista
def read_mathvista(folder: Path) -> list[Item]:
  """MathVista's testmini split (https://arxiv.org/abs/2310.02255)."""
  found = records.read(folder, "testmini")
  return [_mathvista_item(folder, record) for record in found]


def _mathvista_item(folder: Path, record: Record) -> Item:
  values = record.values
  unit = values.get("unit")
  question = records.get(record, "question", str)
  embedded = bool(values.get("decoded_image"))
  return Item(
    id=str(values.get("pid")),
    question=f"{question} (Unit: {unit})" if unit else question,
    answer=str(values.get("answer")),
    pictures=records.pictures(
      folder, record, ["decoded_image" if embedded else "image"]
    ),
    choices=tuple(_literal(record, "choices")),
    category=records.get(record, "metadata", dict).get("task", ""),
    details={
      "kind": records.get(record, "answer_type", str),
      "decimals": int(values.get("precision") or 0),
    },
  )


def grade_mathvista(response: str, item: Item) -> Verdict:
  """By option, else by the type of the answer.

  The truth of a choice is the text of its option. The released script takes
  the option with the nearest spelling; here it has to be the same.
  """
  if item.choices:
    pick = choice.option_of(response, item.choices)
    chosen = item.choices[prompts.LETTERS.index(pick)] if pick else None
    return Verdict(float(chosen == item.answer), pick)
  answer = final.answer_of(response)
  if answer is None:
    return _UNREAD
  kind, decimals = item.details["kind"], item.details["decimals"]
  right = typed.equal(answer, item.answer, kind, decimals=decimals)
  return Verdict(float(right), _pick(answer))


# ------------------------------------------------------------ MathVision
def read_mathvision(folder: Path) -> list[Item]:
  """MathVision's testmini split (https://arxiv.org/abs/2402.14804)."""
  found = records.read(folder, "testmini")
  return [_mathvision_item(folder, record) for record in found]


def _mathvision_item(folder: Path, record: Record) -> Item:
  embedded = bool(record.values.get("decoded_image"))
  return Item(
    id=str(record.values.get("id")),
    question=records.get(record, "question", str),
    answer=records.get(record, "answer", str),
    pictures=records.pictures(
      folder, record, ["decoded_image" if embedded else "image"]
    ),
    choices=tuple(_literal(record, "options")),
    category=str(record.values.get("subject", "")),
  )


def grade_mathvision(response: str, item: Item) -> Verdict:
  """By letter, else as mathematics."""
  if item.choices:
    return grade_letter(response, item)
  answer = final.answer_of(response)
  if answer is None:
    return _UNREAD
  return Verdict(float(_same_value(answer, item.answer)), _pick(answer))


def _same_value(answer: str, truth: str) -> bool:
  value, true = final.number(answer), final.number(truth)
  if value is not None and true is not None:
    return bool(np.isclose(value, true, rtol=1e-6, atol=1e-9))
  return maths.equal(final.plain(answer), final.plain(truth))


# --------------------------------------------------------- OlympiadBench
def read_olympiad(folder: Path) -> list[Item]:
  """OlympiadBench's open-ended subsets: files named "OE_...".

  https://arxiv.org/abs/2402.14008. Proofs ("TP_...") have no graded answer.
  """
  found = [r for r in records.read(folder) if r.file.name.startswith("OE_")]
  if not found:
    raise InputError(
      f"{folder} has no file named OE_...; download OlympiadBench there with "
      "its own file names"
    )
  return [_olympiad_item(folder, record) for record in found]


def _olympiad_item(folder: Path, record: Record) -> Item:
  truths = records.get(record, "final_answer", list)
  context = record.values.get("context") or ""
  answers = [part for truth in truths for part in olympiad.split(str(truth))]
  return Item(
    id=str(record.values.get("id")),
    question="\n".join(filter(None, [context, str(record.values["question"])])),
    answer=", ".join(map(str, truths)),
    pictures=records.pictures(folder, record, _IMAGES),
    category=record.file.stem,
    details={
      "answers": answers,
      "unit": record.values.get("unit") or "",
      "tolerances": _tolerances(record, len(answers)),
    },
  )


def _tolerances(record: Record, answers: int) -> tuple[float, ...]:
  text = str(record.values.get("error") or "")
  try:
    found = tuple(float(part) for part in text.split(",") if part.strip())
  except ValueError as error:
    raise InputError(
      f"{record.where}: 'error' is '{text}' and has to be numbers; is this the "
      "published file?"
    ) from error
  return found if len(found) in (0, 1, answers) else found[:1]


def grade_olympiad(response: str, item: Item) -> Verdict:
  """1 where the answers are the true ones; see `rewards.olympiad`."""
  answers = olympiad.answers_of(response)
  if answers is None:
    return _UNREAD
  right = olympiad.equal(
    answers,
    item.details["answers"],
    unit=item.details["unit"],
    tolerances=item.details["tolerances"],
  )
  return Verdict(
    float(right), ", ".join(sorted(_pick(a) or a for a in answers))
  )


MMMU = Benchmark(
  read_mmmu,
  prompts.reasoned,
  grade_mmmu,
  accuracy,
  "https://arxiv.org/abs/2311.16502",
  hub="MMMU/MMMU",
  files=("*/validation*.parquet",),
  judged=True,
)
MMMU_PRO = Benchmark(
  read_mmmu_pro,
  prompt_mmmu_pro,
  grade_letter,
  mmmu_pro_metric,
  "https://arxiv.org/abs/2409.02813",
  hub="MMMU/MMMU_Pro",
  files=("standard (10 options)/*.parquet", "vision/*.parquet"),
  judged=True,
)
MATHVISTA = Benchmark(
  read_mathvista,
  prompts.reasoned,
  grade_mathvista,
  accuracy,
  "https://arxiv.org/abs/2310.02255",
  hub="AI4Math/MathVista",
  files=("**/testmini*",),
  judged=True,
)
MATHVISION = Benchmark(
  read_mathvision,
  prompts.reasoned,
  grade_mathvision,
  accuracy,
  "https://arxiv.org/abs/2402.14804",
  hub="MathLLMs/MathVision",
  files=("**/testmini*",),
  judged=True,
)
OLYMPIADBENCH = Benchmark(
  read_olympiad,
  prompts.reasoned,
  grade_olympiad,
  accuracy,
  "https://arxiv.org/abs/2402.14008",
  hub="Hothan/OlympiadBench",
  files=("**/OE_*",),
  judged=True,
)
