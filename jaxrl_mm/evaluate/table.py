"""Our numbers beside those of the papers: for the eye and for programs."""

import json
from collections.abc import Mapping
from pathlib import Path

from jaxrl_mm.evaluate.published import PUBLISHED
from jaxrl_mm.metrics import write_text

Row = dict[str, float]


def rows(benchmark: str, model: str, summary: Mapping) -> dict[str, Row]:
  """Name of a model -> name of a number -> percent.

  Ours come first: the mean over the runs, where there are several the votes
  of some and whether any was right, where there was a judge what it says. Then
  the published ones. The columns are those of our metrics, and what papers
  compute in another way behind them.

  Args:
    benchmark: its name.
    model: what ours is called.
    summary: of `run.summarize`.
  """
  interval = summary["pass@1"]
  spread = {"±": (interval["high"] - interval["low"]) / 2}
  ours = {model: {**summary["metrics"], **spread}}
  # Of one response each is what stands above.
  for k, found in summary.get("maj@k", {}).items():
    ours |= {f"{model}, voting@{k}": found} if k != "1" else {}
  for k, share in summary["pass@k"].items():
    ours |= {f"{model}, any@{k}": {"overall": share}} if k != "1" else {}
  if "judge" in summary:
    ours[f"{model}, by the judge"] = summary["judge"]["metrics"]
  percents = {
    name: {key: 100 * value for key, value in row.items()}
    for name, row in ours.items()
  }
  return percents | PUBLISHED.get(benchmark, ("", {}))[1]


def text(
  found: Mapping[str, Row], *, ours: bool = False
) -> list[dict[str, str]]:
  """Rows for printing, empty where a row has no such number.

  Args:
    found: by the name of the model, ours first.
    ours: only the columns of the first row, for a narrow screen; and those of
      rows that have none of them.
  """
  first, *others = found.values()
  rows = [first, *(r for r in others if not ours or not r.keys() & first)]
  columns = dict.fromkeys(key for row in rows for key in row)
  one = lambda row, key: f"{row[key]:.1f}" if key in row else ""
  return [
    {"model": name} | {key: one(row, key) for key in columns}
    for name, row in found.items()
  ]


def markdown(title: str, found: Mapping[str, Row]) -> str:
  """The same as a table of Markdown under its title."""
  lines = text(found)
  cells = [list(lines[0]), ["---"] * len(lines[0])]
  cells += [list(line.values()) for line in lines]
  body = "\n".join(f"| {' | '.join(line)} |" for line in cells)
  return f"## {title}\n\n{body}\n"


def write(
  folder: Path, model: str, summaries: Mapping[str, Mapping]
) -> dict[str, dict[str, Row]]:
  """Writes `table.json` and `table.md`, and gives back what is in them.

  Args:
    folder: of all results.
    model: what ours is called.
    summaries: name of a benchmark -> its summary.
  """
  tables = {b: rows(b, model, summary) for b, summary in summaries.items()}
  write_text(folder / "table.json", json.dumps(tables, indent=2) + "\n")
  parts = [
    f"{markdown(title(name), found)}\n{notes(name, summaries[name])}\n"
    for name, found in tables.items()
  ]
  write_text(folder / "table.md", "\n".join(parts))
  return tables


def title(benchmark: str) -> str:
  """What stands above a table."""
  source = PUBLISHED.get(benchmark, ("", {}))[0]
  return f"{benchmark}, percent" + (f"; others by {source}" if source else "")


def notes(benchmark: str, summary: Mapping) -> str:
  """What a table cannot hold: how many, and what could not be read."""
  lines = [
    f"{benchmark}: {summary['items']} items, runs: {summary['samples']}; ± is "
    "half of the 95 % interval of the mean score over items; no answer was "
    f"found in {100 * summary['unread']:.1f} % of the responses."
  ]
  if "judge" in summary:
    judge = summary["judge"]
    lines.append(
      f"Rules and judge agree on {100 * judge['agreement']:.1f} % of the "
      f"responses (Cohen's kappa {judge['kappa']:.2f})."
    )
  return "\n".join(lines)
