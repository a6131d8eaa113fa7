"""Puts a benchmark to a model, row by row, so that a killed run goes on."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import equivalence, metrics
from jaxrl_mm.evaluate.items import Benchmark, Item, Picture, Verdict
from jaxrl_mm.rewards.judge import Judge

RESULTS = "results.jsonl"
SUMMARY = "summary.json"


class Ask(NamedTuple):
  """One question as a model gets it.

  Attributes:
    name: of the item, for messages.
    text: the prompt, without a chat template.
    pictures: before the text, not yet decoded; see `items.pixels`.
  """

  name: str
  text: str
  pictures: tuple[Picture, ...]


# Questions to the same number of responses each.
Answer = Callable[[list[Ask]], list[list[str]]]


def run_benchmark(
  benchmark: Benchmark,
  items: Sequence[Item],
  answer: Answer,
  folder: str | Path,
  *,
  model: str = "",
  samples: int = 1,
  batch: int = 64,
  judge: Judge | None = None,
) -> dict:
  """Answers and grades what is missing, then sums all up.

  `folder/results.jsonl` gets a line an item, in the order of the items, all
  lines of a batch at once; a line that was cut off is written again.
  `folder/summary.json` holds what is returned.

  Args:
    benchmark: of `benchmarks.BENCHMARKS`.
    items: what its `read` gave, or some of it.
    answer: the model; it is asked for `samples` responses a question.
    folder: of the results.
    model: names what answers, so that two are not mixed in one folder.
    samples: n, responses to each question.
    batch: questions asked at once.
    judge: also asked whether each response means the truth.

  Returns:
    See `summarize`.

  Raises:
    InputError: there are no items, or the folder holds other results.
  """
  if not items:
    raise InputError("the benchmark has no items; name the folder it is in")
  path = Path(folder) / RESULTS
  rows = _resume(path, _header(benchmark, items, model, samples, judge))
  for start in range(len(rows), len(items), batch):
    part = items[start : start + batch]
    new = _answer(benchmark, part, answer, samples, judge)
    numbered = [{"row": start + i, **row} for i, row in enumerate(new)]
    _append(path, numbered)
    rows.extend(numbered)
  summary = summarize(benchmark, items, rows)
  _write(Path(folder) / SUMMARY, json.dumps(summary, indent=2) + "\n")
  return summary


def summarize(
  benchmark: Benchmark, items: Sequence[Item], rows: Sequence[dict]
) -> dict:
  """The numbers of a run.

  Returns:
    "metrics": the benchmark's own, each a mean over the n runs; "pass@1": the
    mean score with its 95 % interval; "unread": share of responses without a
    pick; "pass@k" and, where responses can be voted on, "maj@k" for k of 1, 2,
    4, ... and n, the latter the benchmark's own metrics when the first k runs
    vote; "judge", if there was one: the metrics by its verdicts and its
    agreement with the rules.
  """
  verdicts = [_verdicts(row) for row in rows]
  scores = np.array([row["scores"] for row in rows])
  samples = scores.shape[1]
  powers = [
    k for k in (2**i for i in range(samples.bit_length())) if k < samples
  ]
  sizes = [*powers, samples]
  summary = {
    "items": len(rows),
    "samples": samples,
    "metrics": _over_runs(benchmark, items, verdicts),
    "pass@1": metrics.pass_at_1(scores)._asdict(),
    "unread": float(np.mean([v.pick is None for row in verdicts for v in row])),
    "pass@k": {str(k): metrics.pass_at_k(scores, k) for k in sizes},
  }
  if any(v.pick is not None for row in verdicts for v in row):
    votes = {k: [metrics.vote(row[:k]) for row in verdicts] for k in sizes}
    summary["maj@k"] = {
      str(k): benchmark.metric(items, vote) for k, vote in votes.items()
    }
  if "judged" in rows[0]:
    summary["judge"] = _judged(benchmark, items, rows, verdicts)
  return summary


def _verdicts(row: dict) -> list[Verdict]:
  columns = zip(row["scores"], row["picks"], row["parts"])
  return [Verdict(score, pick, tuple(parts)) for score, pick, parts in columns]


def _over_runs(benchmark, items, verdicts):
  """The benchmark's metrics of each run, meaned."""
  runs = [benchmark.metric(items, run) for run in zip(*verdicts)]
  return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def _judged(benchmark, items, rows, verdicts):
  judged = [
    [v._replace(score=float(j)) for j, v in zip(row["judged"], said)]
    for row, said in zip(rows, verdicts)
  ]
  ruled = [score >= 1 for row in rows for score in row["scores"]]
  meant = [bool(j) for row in rows for j in row["judged"]]
  return {
    "metrics": _over_runs(benchmark, items, judged),
    **metrics.agreement(ruled, meant),
  }


def _answer(benchmark, items, answer, samples, judge):
  asks = [Ask(i.id, benchmark.prompt(i), i.pictures) for i in items]
  responses = answer(asks)
  counts = {len(r) for r in responses}
  if len(responses) != len(asks) or counts != {samples}:
    raise ValueError(
      f"{len(asks)} questions got {len(responses)} answers of {counts} samples "
      f"where {samples} were asked for"
    )
  rows = []
  for item, texts in zip(items, responses):
    verdicts = [benchmark.grade(text, item) for text in texts]
    rows.append(
      {
        "id": item.id,
        "responses": texts,
        "scores": [v.score for v in verdicts],
        "picks": [v.pick for v in verdicts],
        "parts": [v.parts for v in verdicts],
      }
    )
  if judge is not None:
    _ask_judge(items, rows, samples, judge)
  return rows


def _ask_judge(items, rows, samples, judge):
  pairs = [
    (text, i) for i, row in zip(items, rows) for text in row["responses"]
  ]
  judged = equivalence.verdicts(pairs, judge)
  for n, row in enumerate(rows):
    row["judged"] = judged[n * samples : (n + 1) * samples]


# -------------------------------------------------------------- the file
def _header(benchmark, items, model, samples, judge) -> str:
  asked = [(i.id, benchmark.prompt(i), i.answer) for i in items]
  digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
  header = {"items": digest, "model": model, "samples": samples}
  return json.dumps({**header, "judge": judge is not None})


def _resume(path: Path, header: str) -> list[dict]:
  """Rows that are there already; a new file gets its header."""
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, header + "\n")
    return []
  text = path.read_text(encoding="utf-8")
  whole = text[: text.rfind("\n") + 1]
  first, *lines = whole.split("\n")[:-1] or [""]
  if first != header:
    raise InputError(
      f"{path} holds results of another model, other items or another number "
      "of samples; remove it or name another folder"
    )
  if whole != text:
    _write(path, whole)
  return [json.loads(line) for line in lines]


def _append(path: Path, rows: Sequence[dict]) -> None:
  with open(path, "a", encoding="utf-8") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
    file.flush()
    os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
  """All or nothing: a reader never sees half of it."""
  draft = path.with_name(path.name + ".new")
  draft.write_text(text, encoding="utf-8")
  draft.replace(path)
