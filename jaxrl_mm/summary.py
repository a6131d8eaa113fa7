"""What is left of a run when it is over: summary.json and its table."""

import json
import statistics
from pathlib import Path
from typing import Any

import jax

from jaxrl_mm import metrics, sharding


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


def describe_stage(folder: Path, held_out: dict[str, float]) -> dict[str, Any]:
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


# Columns of the table, in percent: heading and name in the summary. Short, for
# a terminal has 80 columns.
_COLUMNS = {
  "right": "accuracy",
  "form": "format",
  "false": "hallucination",
  "blind": "blind_same",
  "pairs": "pair_accuracy",
  "used": "effective",
  "fresh": "effective_without_buffer",
}
_LEGEND = """\
right: accuracy; form: answers in the right form; false: digits the reasoning
names that are not there; blind: answers that stay when the picture is black;
pairs: where the reward model puts the right answer first; used: rows that teach
something, fresh: what that would be without the buffer.
"""


def show(summary: dict[str, Any], workdir: Path) -> None:
  """The table at the end of a run, and where to look next."""
  percent = lambda x: "" if x is None else f"{100 * x:.1f}"
  rows = [
    {"stage": name}
    | {title: percent(told.get(key)) for title, key in _COLUMNS.items()}
    | {"steps": str(told.get("steps", ""))}
    for name, told in summary["stages"].items()
  ]
  metrics.print_table("Held-out results after each stage, in percent", rows)
  if jax.process_index() == 0:
    print(
      f"{_LEGEND}The run is in {workdir}: summary.json has this table, "
      "<stage>/metrics.jsonl every step,\npolicy/samples.jsonl what the model "
      "wrote. Curves, where TensorBoard is installed:\n"
      f"tensorboard --logdir {workdir}"
    )
