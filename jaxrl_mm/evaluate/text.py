"""Benchmarks without pictures: AIME, GPQA, IFEval and BFCL."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import metrics, multimodal, prompts, records
from jaxrl_mm.evaluate.items import Benchmark, Item, Verdict
from jaxrl_mm.evaluate.records import Record
from jaxrl_mm.rewards import calls, final, instructions


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


# ------------------------------------------------------------------ BFCL
# File name -> which part of the score; the other files need Java, JavaScript,
# a live service or a conversation, and are not read.
_BFCL = {
  "simple": "non-live",
  "simple_python": "non-live",
  "multiple": "non-live",
  "parallel": "non-live",
  "parallel_multiple": "non-live",
  "irrelevance": "irrelevance",
  "live_simple": "live",
  "live_multiple": "live",
  "live_parallel": "live",
  "live_parallel_multiple": "live",
  "live_irrelevance": "irrelevance",
}
_BFCL_PROMPT = """\
Below is a request and a list of functions. Reply with the calls that fulfil \
the request and nothing else, in this form:
[name1(parameter1=value1, parameter2=value2), name2(parameter=value)]
Values are Python literals. If no function fits, or a parameter it needs is \
not given, say so in a sentence without a call.

Functions:
{functions}

Request:
{question}"""


def read_bfcl(folder: Path) -> list[Item]:
  """BFCL's single-turn Python parts, as its package ships them.

  `BFCL_v<n>_<category>.json` in JSON lines, and for most of them a file of the
  same name in `possible_answer`.
  """
  folder = Path(folder)
  files = [
    (file, name)
    for file in sorted(folder.glob("BFCL_v*.json"))
    if (name := file.stem.split("_", 2)[2]) in _BFCL
  ]
  if not files:
    raise InputError(
      f"{folder} has no file such as BFCL_v3_simple.json; copy the data folder "
      "of the bfcl package there"
    )
  return [item for file, name in files for item in _bfcl_items(file, name)]


def _bfcl_items(file: Path, category: str) -> list[Item]:
  answers = file.parent / "possible_answer" / file.name
  truths = {}
  if "irrelevance" not in category:
    truths = {
      r.values.get("id"): r.values.get("ground_truth")
      for r in records.read_file(answers)
    }
  found = records.read_file(file)
  return [_bfcl_item(record, truths, category) for record in found]


def _bfcl_item(record: Record, truths: dict, category: str) -> Item:
  name = records.get(record, "id", str)
  functions = records.get(record, "function", list)
  turns = records.get(record, "question", list)
  truth = truths.get(name)
  described = {function["name"] for function in functions}
  called = {called for call in truth or () for called in call}
  if truths and (truth is None or called - described):
    raise InputError(
      f"{record.where}: {name} has no possible answer with its functions; copy "
      "both files of the same release"
    )
  return Item(
    id=name,
    question="\n".join(message["content"] for message in turns[0]),
    answer=json.dumps(truth or []),
    category=category,
    details={"functions": functions, "truths": truth or []},
  )


def prompt_bfcl(item: Item) -> str:
  """The request, the functions as JSON, and the form of the answer."""
  functions = json.dumps(item.details["functions"])
  return _BFCL_PROMPT.format(functions=functions, question=item.question)


def grade_bfcl(response: str, item: Item) -> Verdict:
  """1 for the expected calls; where nothing fits, for a reply without one."""
  found = calls.calls_of(response)
  if not item.details["truths"]:
    return Verdict(float(found is None), "none" if found is None else "call")
  if found is None:
    return Verdict(0.0, None)
  functions, truths = item.details["functions"], item.details["truths"]
  right = calls.match(found, functions, truths)
  pick = sorted(f"{c.name}{sorted(c.arguments.items())}" for c in found)
  return Verdict(float(right), "; ".join(pick))


def bfcl_metric(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """ "non-live": mean of its categories; "live": of all its items;
  "irrelevance": of its two categories; "overall": of these three.

  The leaderboard's overall also has conversations, which are not graded here:
  the two are not comparable.
  """
  scores = [v.score for v in verdicts]
  each = metrics.by_category([i.category for i in items], scores)
  live = [s for i, s in zip(items, scores) if _BFCL[i.category] == "live"]
  parts = {}
  for part in ("non-live", "irrelevance"):
    of_part = [v for c, v in each.items() if _BFCL[c] == part]
    parts |= {part: float(np.mean(of_part))} if of_part else {}
  parts |= {"live": float(np.mean(live))} if live else {}
  return {"overall": float(np.mean(list(parts.values()))), **parts, **each}


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
BFCL = Benchmark(
  read_bfcl,
  prompt_bfcl,
  grade_bfcl,
  bfcl_metric,
  "https://gorilla.cs.berkeley.edu/leaderboard.html",
  hub="gorilla-llm/Berkeley-Function-Calling-Leaderboard",
  files=("BFCL_v*.json", "possible_answer/BFCL_v*.json"),
)
