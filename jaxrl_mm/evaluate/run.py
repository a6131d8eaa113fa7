"""Puts a benchmark to a model, row by row, so that a killed run goes on."""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrl_mm import sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import equivalence, metrics
from jaxrl_mm.evaluate.items import Benchmark, Item, Verdict
from jaxrl_mm.metrics import write_text
from jaxrl_mm.rewards.judge import Judge

RESULTS = "results.jsonl"
SUMMARY = "summary.json"


class Ask(NamedTuple):
  """One question as a model gets it.

  Attributes:
    row: of the item; what is drawn for it should depend on nothing else.
    text: the prompt, without a chat template; the pictures stand before it.
    item: the whole question.
    earlier: what user and model said before, in turn.
  """

  row: int
  text: str
  item: Item
  earlier: tuple[str, ...] = ()


# Questions to the same number of responses each.
Answer = Callable[[list[Ask]], list[list[str]]]


class Protocol(NamedTuple):
  """How a benchmark is put to a model.

  Attributes:
    model: names what answers and how, so that two are not mixed in a folder.
    samples: n, responses to each question.
    batch: questions asked at once.
    ks: of pass@k and maj@k; none takes 1, 2, 4, ... and n.
    judge: also asked whether each response means the truth.
  """

  model: str = ""
  samples: int = 1
  batch: int = 64
  ks: tuple[int, ...] = ()
  judge: Judge | None = None


def at_once(work: Callable, *arguments) -> Future:
  """`Executor.submit` of nobody: the work is done when it returns."""
  future = Future()
  future.set_result(work(*arguments))
  return future


def end_with_parent() -> None:
  """For processes of a pool, which a killed parent would leave behind."""
  parent = multiprocessing.parent_process()
  leave = lambda: (parent.join(), os._exit(1))
  threading.Thread(target=leave, daemon=True).start()


def run_benchmark(
  benchmark: Benchmark,
  items: Sequence[Item],
  answer: Answer,
  folder: str | Path,
  protocol: Protocol,
  *,
  submit: Callable[..., Future] = at_once,
  progress: Callable[[int], None] = lambda done: None,
) -> dict:
  """Answers and grades what is missing, then sums all up.

  A batch is graded while the next one is answered. `folder/results.jsonl` gets
  a line an item, in the order of the items, all lines of a batch at once; a
  batch that was cut off is done again. `folder/summary.json` holds what is
  returned.

  Args:
    benchmark: of `benchmarks.BENCHMARKS`.
    items: what its `read` gave, or some of it.
    answer: the model; it is asked for `protocol.samples` responses a question.
    folder: of the results.
    protocol: how it is asked.
    submit: of a process pool, in which graders and judge work.
    progress: told how many items are done.

  Returns:
    See `summarize`.

  Raises:
    InputError: there are no items, or the folder holds other results.
    JudgeDown: the judge gave no replies.
  """
  if not items:
    raise InputError("the benchmark has no items; name the folder it is in")
  path = Path(folder) / RESULTS
  header = _header(benchmark, items, protocol)
  rows = _resume(path, header, len(items), protocol.batch)
  progress(len(rows))
  sharding.of_first_process(str(len(rows)))
  for new in _batches(benchmark, items, answer, protocol, len(rows), submit):
    _append(path, new)
    rows.extend(new)
    progress(len(rows))
  summary = summarize(benchmark, items, rows, protocol.ks)
  write_text(Path(folder) / SUMMARY, json.dumps(summary, indent=2) + "\n")
  return summary


def only_answer(
  benchmark: Benchmark,
  items: Sequence[Item],
  answer: Answer,
  protocol: Protocol,
) -> None:
  """Does a further process's part of the first one's `run_benchmark`.

  It answers with it. Grading, files and numbers are the first one's.
  """
  first = int(sharding.of_first_process(""))
  for asks in _asks(benchmark, items, protocol.batch, first):
    answer(asks)


def summarize(
  benchmark: Benchmark,
  items: Sequence[Item],
  rows: Sequence[dict],
  ks: Sequence[int] = (),
) -> dict:
  """The numbers of a run.

  Returns:
    "metrics": the benchmark's own, each a mean over the n runs; "pass@1": the
    mean score with its 95 % interval; "unread": share of responses without a
    pick; "pass@k" and, where responses can be voted on, "maj@k" for each k, the
    latter the benchmark's own metrics when the first k runs vote; "judge", if
    there was one: the metrics by its verdicts and its agreement with the rules.
  """
  verdicts = [_verdicts(row) for row in rows]
  scores = np.array([row["scores"] for row in rows])
  samples = scores.shape[1]
  powers = [2**i for i in range(samples.bit_length())]
  sizes = ks or [*(k for k in powers if k < samples), samples]
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


# --------------------------------------------------------- batch by batch
def _batches(benchmark, items, answer, protocol, first, submit):
  """Lines of the file; each batch is graded while the next is answered."""
  late = None
  try:
    for asks in _asks(benchmark, items, protocol.batch, first):
      responses = answer(asks)
      _check_count(asks, responses, protocol.samples)
      started = _start_grading(benchmark, asks, responses, protocol, submit)
      if late:
        yield _collect(*late)
      late = started
  except (Exception, KeyboardInterrupt):
    # What was answered before is not lost.
    if late:
      yield _collect(*late)
    raise
  if late:
    yield _collect(*late)


def _asks(benchmark, items, batch, first) -> Iterator[list[Ask]]:
  for start in range(first, len(items), batch):
    part = items[start : start + batch]
    yield [
      Ask(start + i, benchmark.prompt(item), item)
      for i, item in enumerate(part)
    ]


def _check_count(asks, responses, samples):
  counts = {len(r) for r in responses}
  if len(responses) != len(asks) or counts != {samples}:
    raise ValueError(
      f"{len(asks)} questions got {len(responses)} answers of {counts} samples "
      f"where {samples} were asked for"
    )


def _start_grading(benchmark, asks, responses, protocol, submit):
  # A grader has no use for pictures, and a pool would copy them.
  asks = [a._replace(item=a.item._replace(pictures=())) for a in asks]
  verdicts = [
    submit(_grade, benchmark.grade, texts, ask.item)
    for ask, texts in zip(asks, responses)
  ]
  pairs = [(t, a.item) for a, texts in zip(asks, responses) for t in texts]
  judge = protocol.judge
  judged = submit(equivalence.verdicts, pairs, judge) if judge else None
  return asks, responses, verdicts, judged


def _grade(grade, texts, item):
  return [grade(text, item) for text in texts]


def _collect(asks, responses, verdicts, judged) -> list[dict]:
  """Lines of the file, once the graders are done."""
  rows = []
  for ask, texts, graded in zip(asks, responses, verdicts):
    columns = zip(*graded.result())
    line = dict(zip(("scores", "picks", "parts"), map(list, columns)))
    rows.append({"row": ask.row, "id": ask.item.id, "responses": texts, **line})
  if judged is not None:
    means = iter(judged.result())
    for row in rows:
      row["judged"] = [next(means) for _ in row["responses"]]
  return rows


# -------------------------------------------------------------- the file
def _header(benchmark, items, protocol) -> str:
  asked = [(i.id, benchmark.prompt(i), i.answer) for i in items]
  digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
  header = {
    "items": digest,
    "model": protocol.model,
    "samples": protocol.samples,
    "judge": protocol.judge is not None,
  }
  return json.dumps(header)


def _resume(path: Path, header: str, items: int, batch: int) -> list[dict]:
  """Rows of the batches that are there already; a new file gets its header.

  A batch is drawn as a whole, so one that is not whole is dropped.
  """
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, header + "\n")
    return []
  text = path.read_text(encoding="utf-8")
  whole = text[: text.rfind("\n") + 1]
  first, *lines = whole.split("\n")[:-1] or [""]
  if first != header:
    raise InputError(
      f"{path} holds results of another model, other items or another number "
      "of samples; remove it or name another folder"
    )
  if len(lines) < items:
    lines = lines[: len(lines) // batch * batch]
  whole = "".join(f"{line}\n" for line in (first, *lines))
  if whole != text:
    write_text(path, whole)
  return [json.loads(line) for line in lines]


def _append(path: Path, rows: Sequence[dict]) -> None:
  with open(path, "a", encoding="utf-8") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
    file.flush()
    os.fsync(file.fileno())
