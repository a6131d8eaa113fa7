"""What is left of a run when it is over: summary.json and its table."""

import json
import statistics
from pathlib import Path
from typing import Any

import jax

from jaxrl_mm import metrics, sharding
from jaxrl_mm.structs import Number


def read(workdir: Path) -> dict[str, Any]:
  """The summary so far, as the first process has it."""
  path = workdir / "summary.json"
  known = path.read_text() if path.exists() else '{"stages": {}}'
  return json.loads(sharding.of_first_process(known))


def write(workdir: Path, summary: dict[str, Any]) -> None:
  """Replaces summary.json; the first process alone writes."""
  if jax.process_index() == 0:
    metrics.write_text(
      workdir / "summary.json", json.dumps(summary, indent=2) + "\n"
    )


def describe_stage(folder: Path, held_out: dict[str, Number]) -> dict[str, Any]:
  """What the summary says of a stage: held-out results and its own means.

  Args:
    folder: of the stage; one that trains nothing has no metrics there.
    held_out: results by name.
  """
  lines = metrics.read_lines(folder / "metrics.jsonl")
  if not lines:
    return dict(held_out)
  mean = lambda name: (
    statistics.fmean(line[name] for line in lines) if name in lines[0] else None
  )
  # The median, for the first step also compiles.
  speed = statistics.median(line["tokens_per_second"] for line in lines)
  return held_out | {
    "steps": lines[-1]["step"],
    "seconds": lines[-1]["seconds"],
    "effective": mean("effective"),
    "effective_without_buffer": mean("effective_without_buffer"),
    "tokens_per_second": speed,
    "compilations": lines[-1]["compilations"],
  }


# Lines of the table: what is measured, and its name in the summary.
_SHARES = {
  "right": "accuracy",
  "in the right form": "format",
  "right, vote of 5": "voting@5",
  "right, vote of 15": "voting@15",
  "any of 5 right": "any@5",
  "any of 15 right": "any@15",
  "same in both orders": "agreement",
  "for response 1": "first",
  "as the analysis says": "reasoned",
  "false digits named": "hallucination",
  "same without picture": "blind_same",
  "pairs in order": "pair_accuracy",
  "solved at once": "solved_at_1",
  "solved at 2nd try": "solved_at_2",
  "solved at 3rd try": "solved_at_3",
  "never solved": "never_solved",
  "rows that teach": "effective",
  "  without a buffer": "effective_without_buffer",
}
_COUNTS = {"tokens an answer": "length", "questions": "questions"}
_COUNTS |= {"steps": "steps", "seconds": "seconds"}


def show(summary: dict[str, Any], workdir: Path) -> None:
  """The table at the end of a run, and where to look next."""
  stages = summary["stages"]
  share, count = (lambda x: f"{100 * x:.1f} %"), (lambda x: f"{x:.0f}")
  lines = [(*line, share) for line in _SHARES.items()]
  lines += [(*line, count) for line in _COUNTS.items()]
  read = lambda value, form: "" if value is None else form(value)
  rows = [
    {"": title} | {n: read(told.get(key), form) for n, told in stages.items()}
    for title, key, form in lines
  ]
  told = [row for row in rows if any(list(row.values())[1:])]
  metrics.print_table("Held-out results after each stage", told)
  if jax.process_index() == 0:
    print(
      f"The run is in {workdir}: summary.json has this table, "
      "<stage>/metrics.jsonl every step,\npolicy/samples.jsonl what the model "
      "wrote. Curves, where TensorBoard is installed:\n"
      f"tensorboard --logdir {workdir}"
    )
