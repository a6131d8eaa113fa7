"""What is left of a run when it is over: summary.json and its table."""

import json
import statistics
import textwrap
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


# Columns of the table: heading, name in the summary and what it means. Short,
# for a terminal has 80 columns; what no stage has is left out.
_COLUMNS = (
  ("right", "accuracy", "accuracy"),
  ("form", "format", "answers in the right form"),
  ("vote 5", "voting@5", ""),
  ("vote 15", "voting@15", "what most of so many samples say"),
  ("any 5", "any@5", ""),
  ("any 15", "any@15", "one of so many is right"),
  ("agree", "agreement", "pairs with one choice in both orders"),
  ("first", "first", "choices of response 1 (half is fair)"),
  ("led", "reasoned", "analyses that lead to the choice"),
  ("false", "hallucination", "digits named that are not there"),
  ("blind", "blind_same", "answers that stay when the picture is black"),
  ("pairs", "pair_accuracy", "pairs the reward model puts in order"),
  ("used", "effective", "rows that teach something"),
  ("fresh", "effective_without_buffer", "the same without the buffer"),
)


def show(summary: dict[str, Any], workdir: Path) -> None:
  """The table at the end of a run, and where to look next."""
  percent = lambda x: "" if x is None else f"{100 * x:.1f}"
  stages = summary["stages"]
  has = lambda key: any(t.get(key) is not None for t in stages.values())
  columns = [column for column in _COLUMNS if has(column[1])]
  rows = [
    {"stage": name}
    | {title: percent(told.get(key)) for title, key, _ in columns}
    | {"steps": str(told.get("steps", ""))}
    for name, told in stages.items()
  ]
  metrics.print_table("Held-out results after each stage, in percent", rows)
  if jax.process_index() == 0:
    meant = [f"{title}: {meaning}" for title, _, meaning in columns if meaning]
    print(textwrap.fill("; ".join(meant) + ".", 80))
    print(
      f"The run is in {workdir}: summary.json has this table, "
      "<stage>/metrics.jsonl every step,\npolicy/samples.jsonl what the model "
      "wrote. Curves, where TensorBoard is installed:\n"
      f"tensorboard --logdir {workdir}"
    )
