"""A run as one page: `python -m jaxrl_mm.report RUN_FOLDER [RUN_FOLDER ...]`.

Reads only the run's folder. The page holds all that it shows and loads nothing.
Text of a model is never markup there: it travels as JSON in a block that no
browser executes, the script shows it as text, and the page's security policy
allows that one script alone.
"""

import argparse
import base64
import functools
import hashlib
import io
import json
import math
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from jaxrl_mm import pytree
from jaxrl_mm.errors import InputError

TEMPLATE = Path(__file__).with_suffix(".html")

# Bounds that keep a page below 5 MB however long the run was.
MAX_RUNS = 8
CURVE_POINTS, PAGE_POINTS = 500, 150_000
SAMPLE_CHARACTERS = 2_000_000
GROUP_ROWS, TEXT_CHARACTERS = 64, 4000
PICTURE_CHARACTERS, PICTURE_PIXELS = 60_000, 320

# (title, unit, names of its metrics), in the order they are shown; the first
# that matches has the metric. "%" is of shares between 0 and 1.
PANELS = (
  ("Reward", "", r"reward|reward_(chosen|rejected|margin)|score(_gap)?"),
  (
    "Accuracy and form",
    "%",
    r"answer|format|result|consistency|(.*_)?accuracy"
    r"|(voting|any|agreement)([@_\d].*)?|first|consistent|reasoned"
    r"|solved_at_\d+|never_solved",
  ),
  ("Effective rows", "%", r"effective.*"),
  ("Log-prob lost without the picture", "nats", r".*blind.*gap.*"),
  ("Hallucination", "%", r".*(hallucinat|blind|grounded|false_claim).*"),
  ("Threshold", "", r".*threshold.*"),
  ("Completion length", "tokens", r"completion_tokens|.*length.*"),
  ("Cut off", "%", r"cut_off"),
  ("Loss", "", r"loss|.*_loss|dpo|bco"),
  ("KL divergence", "nats", r"(.*_)?kl(_.*)?"),
  ("Entropy", "nats", r"(.*_)?entropy"),
  ("Sampler against trainer", "nats", r"sampler_gap"),
  ("Clipped", "%", r"(.*_)?clip_fraction"),
  ("Gradient norm", "", r"gradient_norm"),
  ("Throughput", "tokens/s", r"tokens_per_second"),
  ("Time of a step", "s", r".*_seconds"),
)

# Results of a judge whose names do not explain themselves.
JUDGED = {
  "first": "for response 1",
  "agreement": "same in both orders",
  "consistent": "right in both orders",
  "reasoned": "as the analysis says",
  "length": "tokens an answer",
}

# In every line beside the metrics.
CLOCK = {"step", "seconds", "unix_seconds"}

# The term that says whether a completion is right: the first one present.
VERDICTS = ("answer", "result", "accuracy")


class Stage(NamedTuple):
  """Lines of a stage's metrics.jsonl and samples.jsonl."""

  metrics: list[dict[str, Any]]
  samples: list[dict[str, Any]]


class Run(NamedTuple):
  """What a run's folder says; stages in the order they ran."""

  name: str
  config: dict[str, Any]
  summary: dict[str, Any]
  stages: dict[str, Stage]


def write(*workdirs: Path) -> Path:
  """Writes the page of a run, or one that compares several.

  Args:
    workdirs: folders of runs, at most `MAX_RUNS`. What a run has not written
      yet is left out of its page.

  Returns:
    The page: report.html in the folder, or comparison.html in the first.

  Raises:
    InputError: a folder holds no run, or there are too many.
  """
  if len(workdirs) > MAX_RUNS:
    raise InputError(
      f"{len(workdirs)} runs are too many for one page; name at most {MAX_RUNS}"
    )
  page = render([read_run(Path(workdir)) for workdir in workdirs])
  name = "report.html" if len(workdirs) == 1 else "comparison.html"
  path = Path(workdirs[0]) / name
  path.write_text(page, encoding="utf-8")
  return path


def render(runs: Sequence[Run]) -> str:
  """The page as HTML."""
  template = TEMPLATE.read_text(encoding="utf-8")
  script = template.partition("<script>")[2].partition("</script>")[0]
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  data = json.dumps(describe(runs), allow_nan=False, separators=(",", ":"))
  # Without "<" nothing in the data can close the block it stands in. The data
  # goes in last, for a completion may hold the other placeholder.
  page = template.replace("{{digest}}", f"sha256-{digest}")
  return page.replace("{{data}}", data.replace("<", "\\u003c"))


def describe(runs: Sequence[Run]) -> dict[str, Any]:
  """All that the page shows, as JSON."""
  stages = _union(run.stages for run in runs)
  curves = sum(
    len(line)
    for run in runs
    for stage in run.stages.values()
    for line in stage.metrics[-1:]
  )
  points = max(1, min(CURVE_POINTS, PAGE_POINTS // max(curves, 1)))
  sets = [
    (i, name, stage.samples)
    for i, run in enumerate(runs)
    for name, stage in run.stages.items()
    if stage.samples
  ]
  return {
    "runs": [run.name for run in runs],
    "results": results(runs),
    "stages": [
      {
        "name": name,
        "facts": [_facts(run.stages.get(name)) for run in runs],
        "panels": panels(runs, name, points),
      }
      for name in stages
    ],
    "rollouts": [
      {"run": i, "stage": name}
      | rollouts(samples, SAMPLE_CHARACTERS // len(sets))
      for i, name, samples in sets
    ],
    "config": settings(runs),
  }


# -------------------------------------------------------------- reading
def read_run(workdir: Path) -> Run:
  """Reads a folder.

  Raises:
    InputError: it holds no run.
  """
  if not (workdir / "config.json").exists():
    raise InputError(f"{workdir} holds no run; name the --workdir of one")
  files = ("metrics.jsonl", "samples.jsonl")
  found = {
    path.parent
    for depth in ("*", "*/*")
    for file in files
    for path in workdir.glob(f"{depth}/{file}")
  }
  config = _read_json(workdir / "config.json")
  # A folder whose stage the config does not name comes last.
  rank = {stage: i for i, stage in enumerate(config.get("stages", ()))}
  names = sorted(
    (folder.relative_to(workdir).as_posix() for folder in found),
    key=lambda name: (rank.get(name.split("/")[0], len(rank)), name),
  )
  return Run(
    name=workdir.resolve().name,
    config=config,
    summary=_read_json(workdir / "summary.json"),
    stages={
      name: Stage(*(_read_lines(workdir / name / file) for file in files))
      for name in names
    },
  )


def _read_json(path: Path) -> dict[str, Any]:
  return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _read_lines(path: Path) -> list[dict[str, Any]]:
  """Objects with a step; a line that a kill cut short is left out."""
  if not path.exists():
    return []
  lines = []
  for text in path.read_text("utf-8").split("\n"):
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      continue
  return [line for line in lines if "step" in line]


# --------------------------------------------------------------- curves
def panels(
  runs: Sequence[Run], stage: str, points: int
) -> list[dict[str, Any]]:
  """The charts of a stage, those of metrics that no panel names at the end.

  One run shows related metrics together; of several runs each metric has its
  own chart, with one curve a run.

  Args:
    runs: what is compared.
    stage: its name.
    points: of a curve, at most.
  """
  columns = [
    run.stages[stage].metrics if stage in run.stages else [] for run in runs
  ]
  names = {name for column in columns for line in column for name in line}
  grouped: dict[tuple[int, str], list[str]] = {}
  for place, name in sorted((_place(n), n) for n in names - CLOCK):
    alone = len(runs) > 1 or place == len(PANELS)
    title = _words(name) if alone else PANELS[place][0]
    grouped.setdefault((place, title), []).append(name)
  charts = [
    {
      "title": title,
      "unit": PANELS[place][1] if place < len(PANELS) else "",
      "known": place < len(PANELS),
      "curves": _curves(runs, columns, members, points),
    }
    for (place, title), members in grouped.items()
  ]
  return [chart for chart in charts if chart["curves"]]


def _curves(runs, columns, names, points):
  """Those of one chart; a colour stands for a metric, or for a run."""
  labelled = (
    [(_words(name), columns[0], name) for name in names]
    if len(runs) == 1
    else [(run.name, column, names[0]) for run, column in zip(runs, columns)]
  )
  curves = [
    {"label": label, "color": i} | curve(column, name, points)
    for i, (label, column, name) in enumerate(labelled)
  ]
  return [c for c in curves if c["steps"]]


def curve(
  lines: Iterable[Mapping[str, Any]], name: str, points: int
) -> dict[str, list[int | float]]:
  """Steps and values of a metric; means of equal spans where it is long.

  Values that are not finite are left out.
  """
  known = [
    (line["step"], line[name])
    for line in lines
    if _number(line.get(name)) is not None
  ]
  span = max(1, -(-len(known) // points))
  spans = [known[i : i + span] for i in range(0, len(known), span)]
  mean = lambda part: float(f"{statistics.fmean(v for _, v in part):.4g}")
  return {
    "steps": [part[-1][0] for part in spans],
    "values": [mean(part) for part in spans],
  }


@functools.cache
def _place(name: str) -> int:
  """Number of the metric's panel; their count where none has it."""
  fits = (
    i for i, (_, _, names) in enumerate(PANELS) if re.fullmatch(names, name)
  )
  return next(fits, len(PANELS))


def _facts(stage: Stage | None) -> str:
  if stage is None or not stage.metrics:
    return ""
  last = stage.metrics[-1]
  minutes, seconds = divmod(round(last.get("seconds", 0)), 60)
  hours, minutes = divmod(minutes, 60)
  parts = [(hours, "h"), (minutes, "min"), (seconds, "s")]
  first = next((i for i, (n, _) in enumerate(parts) if n), 2)
  time = " ".join(f"{n} {unit}" for n, unit in parts[first : first + 2])
  return f"{last['step']:,} steps in {time}"


# -------------------------------------------------------------- results
def results(runs: Sequence[Run]) -> dict[str, Any]:
  """The table of the summaries: `columns` of stage and run, `rows` of texts."""
  stages = _union(run.summary.get("stages", {}) for run in runs)
  columns = [
    (stage, i, pytree.dotted(run.summary["stages"][stage]))
    for stage in stages
    for i, run in enumerate(runs)
    if stage in run.summary.get("stages", {})
  ]
  names = _union(values for *_, values in columns)
  rows = [
    [
      JUDGED.get(name) or _words(name),
      *(_read_out(name, v.get(name)) for *_, v in columns),
    ]
    for name in names
  ]
  return {
    "columns": [[stage, i] for stage, i, _ in columns],
    "rows": [row for row in rows if any(row[1:])],
  }


def _read_out(name: str, value: Any) -> str:
  """A value as people read it: `accuracy` 0.513 is 51.3 %."""
  number = _number(value)
  if number is None:
    return "" if value is None else str(value)
  places = (_place(part) for part in name.split("."))
  shares = any(p < len(PANELS) and PANELS[p][1] == "%" for p in places)
  if shares and 0 <= number <= 1:
    return f"{100 * number:.1f} %"
  if number == int(number) or abs(number) >= 1000:
    return f"{number:,.0f}"
  return f"{number:.3g}"


def settings(runs: Sequence[Run]) -> list[list[str]]:
  """Rows of name and value in each run; of several runs what differs."""
  flat = [pytree.dotted(run.config) for run in runs]
  texts = lambda name: [json.dumps(f[name]) if name in f else "" for f in flat]
  rows = [[name, *texts(name)] for name in _union(flat)]
  return [r for r in rows if len(runs) == 1 or len(set(r[1:])) > 1]


# ------------------------------------------------------------- rollouts
def rollouts(
  samples: Sequence[Mapping[str, Any]], characters: int
) -> dict[str, Any]:
  """Samples by step and group; of too many, groups spread over the run.

  Args:
    samples: lines of samples.jsonl.
    characters: of all groups, about.

  Returns:
    `groups`, and `total`, how many there were.
  """
  keyed: dict[Any, list[Mapping[str, Any]]] = {}
  for line in samples:
    # Replayed rows come from many groups, one each; they are read together.
    group = "" if line.get("replayed") else line.get("group", 0)
    keyed.setdefault((line["step"], group), []).append(line)
  groups = [_group(rows) for rows in keyed.values()]
  total = len(groups)
  while groups and len(json.dumps(groups)) > characters:
    groups = groups[:0:-2][::-1]  # every other one, the newest among them
  return {"groups": groups, "total": total}


def _group(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  rows = [_row(line) for line in lines[:GROUP_ROWS]]
  verdicts = {row["right"] for row in rows}
  one = {True: "right", False: "wrong", None: "ungraded"}
  verdict = one[verdicts.pop()] if len(verdicts) == 1 else "mixed"
  replayed = bool(lines[0].get("replayed"))
  return {
    "step": lines[0]["step"],
    "group": lines[0].get("group", 0),
    "rows": rows,
    "omitted": len(lines) - len(rows),
    "kind": "replayed" if replayed else verdict,
  }


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
  terms = {k: _number(v) for k, v in line.get("terms", {}).items()}
  graded = [terms[name] for name in VERDICTS if terms.get(name) is not None]
  return {
    "prompt": _text(line.get("prompt", "")),
    "picture": _picture(line.get("image") or ""),
    "completion": _text(line.get("completion", "")),
    "terms": terms,
    "reward": _number(line.get("reward")),
    "advantage": _number(line.get("advantage")),
    "replayed": bool(line.get("replayed")),
    "right": graded[0] > 0 if graded else None,
  }


def _text(text: str) -> str:
  """Runs of one special token as a count, and no more than fits."""
  repeated = re.compile(r"(<[^<>\s]{1,40}>)\1{3,}")
  count = lambda m: f"{m[1]}×{len(m[0]) // len(m[1])}"
  text = repeated.sub(count, text)
  rest = len(text) - TEXT_CHARACTERS
  return text if rest <= 0 else f"{text[:-rest]} … {rest:,} more characters"


def _picture(png: str) -> str:
  """A data URL; a large picture is made small."""
  if not png or len(png) <= PICTURE_CHARACTERS:
    return png and f"data:image/png;base64,{png}"
  image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
  image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
  file = io.BytesIO()
  image.save(file, "JPEG")
  small = base64.b64encode(file.getvalue()).decode()
  return f"data:image/jpeg;base64,{small}"


# --------------------------------------------------------------- values
def _union(trees: Iterable[Iterable[str]]) -> list[str]:
  """All keys, each once, in the order they are met."""
  return list(dict.fromkeys(key for tree in trees for key in tree))


def _number(value: Any) -> float | None:
  """Four digits are enough to read; JSON has no infinities."""
  if not isinstance(value, int | float) or not math.isfinite(value):
    return None
  return float(f"{value:.4g}")


def _words(name: str) -> str:
  return name.replace("_", " ")


def main(arguments: Sequence[str]) -> None:
  """Writes the page and prints its path."""
  parser = argparse.ArgumentParser(prog="python -m jaxrl_mm.report")
  parser.add_argument(
    "run", nargs="+", type=Path, help="folder of a run; several are compared"
  )
  try:
    print(write(*parser.parse_args(arguments).run))
  except InputError as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main(sys.argv[1:])
