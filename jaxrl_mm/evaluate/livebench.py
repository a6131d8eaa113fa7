"""LiveBench: tasks of six categories, each graded by a rule of its own.

https://arxiv.org/abs/2406.19314. Read are the tasks below, those of its first
year, when the papers were written; the tasks of agents came later.
Answers count where the question asks for them: in `<solution>` tags, boxes,
bold type or the last line. The released graders also search whole responses.
"""

import difflib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import livecodebench, metrics, prompts, records
from jaxrl_mm.evaluate.items import Benchmark, Item, Verdict
from jaxrl_mm.evaluate.records import Record
from jaxrl_mm.rewards import code, final, instructions, sandbox, tables
from jaxrl_mm.rewards import math as maths

_SOLUTION = re.compile(
  r"<solution>((?:(?!<solution>).)*?)</solution>", re.DOTALL
)
# Only from the first star of a row of them, or many stars would take long.
_BOLD = re.compile(r"(?<!\*)\*{2,}+([^*\n]+)\*\*")
_LONGEST_LIST = 200


def _marked(text: str) -> str | None:
  """What stands in the last solution tags, else box, else bold type."""
  boxes = final.boxed(text)
  found = _SOLUTION.findall(text) or boxes or _BOLD.findall(text)
  return final.plain(found[-1]).strip() if found else None


def _last_line(text: str) -> str:
  return text.strip().rpartition("\n")[2]


def _list(text: str | None) -> list[str]:
  """Words between commas, in small letters."""
  parts = (text or "").lower().replace("-", " ").split(",")
  return [final.words(part) for part in parts]


# ------------------------------------------------- text, truth -> score
def _letter(text: str, truth: str) -> float:
  """A letter, which the question asks to repeat five times."""
  marked = _marked(text) or ""
  said = (marked, _last_line(text).strip(" .*()$"))
  repeated = re.findall(r"\b([A-F])\1{3,}\b", text)
  picks = [repeated[-1]] if repeated else [s for s in said if s]
  return float(bool(picks) and set(picks[0].upper().strip("()")) == {truth})


def _integer(text: str, truth: str) -> float:
  """Three digits, marked or in the last line."""
  found = re.findall(r"\d+", _marked(text) or _last_line(text)[-50:])
  return float(bool(found) and int(found[-1][:9]) == int(truth))


def _expression(text: str, truth: str) -> float:
  """Mathematics; a constant of integration may be written."""
  answer = final.answer_of(text) or _marked(text)
  if answer is None:
    return 0.0
  bare = re.sub(r"\+\s*[Cc]\s*$", "", final.plain(answer)).strip()
  return float(maths.equal(bare, re.sub(r"\$", "", truth)))


def _order(text: str, truth: str) -> float:
  """Numbers of expressions in a proof: one minus the share to be edited."""
  said = re.findall(r"answer\s*:\s*([^\n]*)", text, re.IGNORECASE)
  source = said[-1] if said and said[-1].strip() else _marked(text)
  found = re.findall(r"\d+", source or _last_line(text))[:_LONGEST_LIST]
  true = re.findall(r"\d+", truth)
  return max(0.0, 1 - _distance(true, found) / max(len(true), len(found)))


def _all_of(text: str, truth: str) -> float:
  """Everything right, in order."""
  return float(_list(_marked(text) or _last_line(text)) == _list(truth))


def _share_of(text: str, truth: str) -> float:
  """Half for the share that is right, half for all of it."""
  said, true = _list(_marked(text) or _last_line(text)), _list(truth)
  share = sum(a == b for a, b in zip(said, true)) / len(true)
  return ((said == true) + share) / 2


def _connections(text: str, truth: str) -> float:
  """Share of groups of four found, in any order."""
  fours = lambda words: {
    frozenset(words[i : i + 4]) for i in range(0, len(words), 4)
  }
  true = fours(_list(truth))
  return len(true & fours(_list(_marked(text))[:_LONGEST_LIST])) / len(true)


def _typos(text: str, truth: str) -> float:
  """The whole corrected text, spaces aside."""
  found = _SOLUTION.findall(text)
  spaced = " ".join((found[-1] if found else text).split())
  return float(" ".join(truth.split()) in spaced)


def _plot(text: str, truth: str) -> float:
  """One minus the edit distance of the order of sentences.

  A sentence has to be much like the true one; in the released grader the
  nearest counts, however far it is.
  """
  summary = text.rpartition("<PLOT_SUMMARY>")[2].partition("</PLOT_SUMMARY>")[0]
  said, true = (
    [s.strip() for s in part.split(".") if s.strip()][:_LONGEST_LIST]
    for part in (summary, truth)
  )
  nearest = [difflib.get_close_matches(s, said, n=1, cutoff=0.6) for s in true]
  places = [said.index(near[0]) for near in nearest if near]
  return max(0.0, 1 - _distance(range(len(true)), places) / len(true))


def _column(text: str, truth: str) -> float:
  """The name of a column, marked or in the last line."""
  letters = lambda t: re.sub(r"\W", "", t.lower())
  said = letters(_marked(text) or _last_line(text))
  return float(said == letters(truth) != "")


def _join(text: str, truth: str) -> float:
  """F1 of the pairs of a mapping between columns."""
  fenced = re.findall(r"```(?:python|json)?\s*\n(.*?)```", text, re.DOTALL)
  source = _SOLUTION.findall(text) or fenced or [text]
  said, true = _mapping(source[-1]), _mapping(truth)
  right = sum(said.get(key) == value for key, value in true.items())
  return 2 * right / max(len(said) + len(true), 1)


def _mapping(text: str) -> dict:
  text = re.sub(r"```(?:python|json)?", "", text).replace("null", "None")
  try:
    found = final.literal(text.strip())
    pairs = found.items() if isinstance(found, dict) else ()
    return {str(k): str(v) for k, v in pairs if v is not None}
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return {}


def _distance(left: Sequence, right: Sequence) -> int:
  """Levenshtein's."""
  row = list(range(len(right) + 1))
  for i, a in enumerate(left, 1):
    previous, row[0] = row[0], i
    for j, b in enumerate(right, 1):
      change = previous + (a != b)
      previous = row[j]
      row[j] = min(row[j] + 1, row[j - 1] + 1, change)
  return row[-1]


_BY_TRUTH: dict[str, Callable[[str, str], float]] = {
  "amc": _letter,
  "smc": _letter,
  "aime": _integer,
  "imo": _order,
  "usamo": _order,
  "AMPS_Hard": _expression,
  "web_of_lies_v2": _all_of,
  "web_of_lies_v3": _share_of,
  "zebra_puzzle": _share_of,
  "spatial": _all_of,
  "connections": _connections,
  "typos": _typos,
  "plot_unscrambling": _plot,
  "cta": _column,
  "tablejoin": _join,
}
_INSTRUCTIONS = ("paraphrase", "simplify", "story_generation", "summarize")
_CODING = ("LCB_generation", "coding_completion")
_TABLES = "tablereformat"
# "from CSV format to JSON format", in later releases "Target Format: JSON".
_TARGET = re.compile(
  r"format to (\w+) format|Target Format: *(\w+)", re.IGNORECASE
)
_FENCE = re.compile(r"```\w*[^\S\n]*\n(.*?)```", re.DOTALL)


# ---------------------------------------------------------- the benchmark
def read(folder: Path) -> list[Item]:
  """A folder with the published ones of some categories in it.

  A file holds several releases; scores of different ones do not compare.

  Raises:
    InputError: a task has no grader here; or coding tasks and no sandbox.
  """
  items = [_item(record) for record in records.read(folder)]
  if any(item.details["grader"] in _CODING for item in items):
    sandbox.check()
  if any(item.details["grader"] in _INSTRUCTIONS for item in items):
    instructions.detector_module()
  return items


def _item(record: Record) -> Item:
  values = record.values
  task = records.get(record, "task", str)
  grader = _grader(record, task, str(values.get("subtask") or ""))
  given = values.get("kwargs") or []
  truth = values.get("ground_truth")
  return Item(
    id=records.get(record, "question_id", str),
    question=str(records.get(record, "turns", list)[0]),
    answer=truth if isinstance(truth, str) else json.dumps(truth),
    category=records.get(record, "category", str),
    details={
      "task": task,
      "grader": grader,
      "names": values.get("instruction_id_list") or [],
      "given": [args or {} for args in given],
      "start": values.get("partial_solution") or "",
      "cases": _cases(record) if grader in _CODING else [],
      "form": _form(record) if grader == _TABLES else "",
    },
  )


def _grader(record: Record, task: str, subtask: str) -> str:
  """The competition of a mathematical question, else its task."""
  words = re.split(r"[_\d]+", subtask or task)
  contest = next((w for w in words if w in _BY_TRUTH), None)
  known = (*_BY_TRUTH, *_INSTRUCTIONS, *_CODING, _TABLES)
  names = (contest, subtask, task)
  grader = next((name for name in names if name in known), None)
  if grader is None:
    raise InputError(
      f"{record.where}: the task '{task}' has no grader here; remove its "
      "folder, and compare by category only"
    )
  unknown = set(record.values.get("instruction_id_list") or ()) - set(
    instructions.CHECKS
  )
  if grader in _INSTRUCTIONS and unknown:
    raise InputError(
      f"{record.where}: the instruction '{min(unknown)}' is not known here; "
      "use a release before 2025-11"
    )
  return grader


def _form(record: Record) -> str:
  """What a table is to be brought to."""
  found = _TARGET.findall(str(record.values["turns"][0]))
  form = "".join(found[-1]).lower() if found else ""
  if form not in tables.FORMS:
    raise InputError(
      f"{record.where}: the question names no form of table that is known "
      f"here, such as {', '.join(tables.FORMS)}; is this the published file?"
    )
  return form


def _cases(record: Record) -> list[code.Case]:
  original = record.values.get("original_json") or {}
  metadata = json.loads(original.get("metadata") or "{}")
  return livecodebench.cases(record, metadata.get("func_name") or "")


def grade(response: str, item: Item) -> Verdict:
  """By the rule of the item's task; parts of a point are possible."""
  text = response.rpartition("</think>")[2].strip()
  grader = item.details["grader"]
  if grader in _CODING:
    return Verdict(float(_runs(text, item)), None)
  if grader in _INSTRUCTIONS:
    names, given = item.details["names"], item.details["given"]
    kept = instructions.kept(text, names, given, loose=False)
    return Verdict((all(kept) + float(np.mean(kept))) / 2, None)
  if grader == _TABLES:
    right = tables.equal(_fenced(text), item.answer, item.details["form"])
    return Verdict(float(right), None)
  score = _BY_TRUTH[grader](text, item.answer) if text else 0.0
  return Verdict(score, _marked(text) or None)


def _fenced(text: str) -> str:
  """The last solution, the last part between fences in it, or all of it."""
  said = [text, *_SOLUTION.findall(text)][-1]
  return [said, *_FENCE.findall(said)][-1]


def _runs(text: str, item: Item) -> bool:
  program = code.program_of(text)
  if program is None:
    return False
  start, cases = item.details["start"], item.details["cases"]
  whole = program if program.startswith(start) else f"{start}\n{program}"
  return code.passes(whole, cases, livecodebench.LIMITS)


def metric(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """Mean of the categories, each the mean of its tasks."""
  names = [f"{i.category}/{i.details['task']}" for i in items]
  tasks = metrics.by_category(names, [v.score for v in verdicts])
  groups = [name.partition("/")[0] for name in tasks]
  each = metrics.by_category(groups, list(tasks.values()))
  return {"overall": float(np.mean(list(each.values()))), **each, **tasks}


LIVEBENCH = Benchmark(
  read,
  prompts.bare,
  grade,
  metric,
  "https://arxiv.org/abs/2406.19314",
  hub="livebench/<category>",
  files=("**/test*",),
)
