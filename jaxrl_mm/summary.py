"""What is left of a run when it is over: summary.json and its table."""

import json
import statistics
from pathlib import Path
from typing import Any

import jax

from jaxrl_mm import metrics


def read(workdir: Path) -> dict[str, Any]:
  """The summary so far."""
  path = workdir / "summary.json"
  return json.loads(path.read_text()) if path.exists() else {"stages": {}}


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


# Columns of the table: heading, name in the summary, how it is written.
_COLUMNS = (
  ("accuracy", "accuracy", "{:.1%}"),
  ("format", "format", "{:.1%}"),
  ("effective", "effective", "{:.1%}"),
  ("no buffer", "effective_without_buffer", "{:.1%}"),
  ("tokens/s", "tokens_per_second", "{:,.0f}"),
  ("steps", "steps", "{}"),
  ("seconds", "seconds", "{:.0f}"),
)


def show(summary: dict[str, Any], workdir: Path) -> None:
  """The table at the end of a run, and where to look next."""
  write = lambda form, x: "" if x is None else form.format(x)
  rows = [
    {"stage": name}
    | {title: write(form, stage.get(key)) for title, key, form in _COLUMNS}
    for name, stage in summary["stages"].items()
  ]
  metrics.print_table("Held-out results after each stage", rows)
  if jax.process_index() == 0:
    print(
      "effective: share of rows that teach something, and what it would be "
      "without the buffer.\n"
      f"The run is in {workdir}: summary.json has this table, <stage>/metrics."
      "jsonl every step,\npolicy/samples.jsonl what the model wrote. Curves, "
      f"where TensorBoard is installed: tensorboard --logdir {workdir}"
    )
