"""Reads a whole data set before a run does.

What it holds, which records are bad, and what evaluation sets have of it too:
  python -m jaxrl_mm.data check rlaif-v:/data/RLAIF-V --model DIR \\
    --eval /data/VL-RewardBench
The same as JSON: --json. The exit code is 1 where a record is bad.
Again as ArrayRecord files, whose records are read one by one, where parquet
reads a group of them for each:
  python -m jaxrl_mm.data pack rlaif-v:/data/RLAIF-V /data/rlaif_v
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import rich.progress
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxrl_mm.data import check, pack
from jaxrl_mm.data.check import Report
from jaxrl_mm.errors import InputError

_BAR = 30


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """The command line."""
  whole = argparse.ArgumentParser(
    prog="python -m jaxrl_mm.data",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = whole.add_subparsers(dest="command", required=True)
  parser = commands.add_parser("check")
  parser.add_argument("source", help="SET:PATH, see the README")
  parser.add_argument("--eval", type=Path, nargs="+", default=[])
  parser.add_argument("--model", default="", help="folder of a tokenizer")
  parser.add_argument("--processes", type=int, default=os.cpu_count())
  parser.add_argument("--json", action="store_true")
  packing = commands.add_parser("pack")
  packing.add_argument("source", help="SET:PATH, see the README")
  packing.add_argument("out", type=Path, help="a new folder")
  return whole.parse_args(argv)


def follow(items: Iterable, total: int) -> Iterable:
  """A progress bar with speed and time left, on the terminal only."""
  bar = rich.progress.Progress(
    *rich.progress.Progress.get_default_columns(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeElapsedColumn(),
    console=Console(stderr=True),
  )
  with bar:
    yield from bar.track(items, total=total, description="reading")


def show(report: Report, console: Console) -> None:
  """What was found, for people."""
  console.print(f"[bold]{escape(report.source)}[/bold]")
  table = Table("records", "count", show_header=False)
  table.add_row("used", f"{report.records:,}")
  table.add_row("  of these bad", f"{report.bad:,}")
  table.add_row("  of these repeated", f"{report.duplicates:,}")
  for reason, count in report.left_out.items():
    table.add_row(f"left out: {reason}", f"{count:,}")
  for shared, count in report.overlap.items():
    table.add_row(f"in an evaluation set: {shared}", f"{count:,}")
  shown = report.pictures
  table.add_row("pictures", f"{shown['count']:,}")
  table.add_row("records without one", f"{shown['records_without']:,}")
  console.print(table)
  spreads = {f"{k}, {report.unit}": v for k, v in report.lengths.items()}
  sides = {f"{k}, pixels": shown[k] for k in ("width", "height")}
  for title, spread in (spreads | sides).items():
    if spread:
      _show_spread(title, spread, console)
  _show_named("bad", report.first_bad, console)
  _show_named("repeats", report.first_duplicates, console)
  _show_named("in an evaluation set", report.first_overlap, console)


def _show_spread(title, spread, console) -> None:
  """A histogram whose classes double."""
  numbers = ", ".join(
    f"{name} {spread[name]:,.0f}" for name in ("least", "median", "99 %")
  )
  console.print(f"{title}: {numbers}, most {spread['most']:,}")
  most = max(spread["below"])
  for power, count in enumerate(spread["below"]):
    if count:
      bar = "█" * max(1, round(_BAR * count / most))
      console.print(f"  below {2**power:>7,} {bar} {count:,}", highlight=False)


def _show_named(title, pairs, console) -> None:
  for name, what in pairs:
    console.print(f"{title}: {escape(name)}: {escape(what)}", soft_wrap=True)


def _do(args: argparse.Namespace) -> int:
  """What the command line asks for; gives the exit code."""
  if args.command == "pack":
    count = pack.pack(args.source, args.out, progress=follow)
    print(f"{count} records are in {args.out}")
    return 0
  report = check.check(
    args.source,
    evaluation=args.eval,
    model=args.model,
    processes=args.processes,
    progress=follow,
  )
  if args.json:
    print(json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False))
  else:
    show(report, Console())
  return int(report.bad > 0)


def main(argv: Sequence[str]) -> None:
  """Ends the process; a mistake of the user's is one sentence."""
  try:
    sys.exit(_do(parse(argv)))
  except InputError as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main(sys.argv[1:])
