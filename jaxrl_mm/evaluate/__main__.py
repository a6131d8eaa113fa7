"""Puts benchmarks to a model and shows its numbers beside the published ones.

One benchmark, in the folder it was downloaded to:
  python -m jaxrl_mm.evaluate --model DIR --benchmark mmmu --data DIR
Several, each in the folder of its name in DIR:
  python -m jaxrl_mm.evaluate --model DIR --benchmark mmmu gpqa --data DIR
Skywork R1V2's protocol, five runs and a judge beside the rules:
  python -m jaxrl_mm.evaluate --model DIR --benchmark mmmu --data DIR \\
    --runs 5 --temperature 0.6 --top-p 0.95 --max-tokens 65536 --judge URL
R1-Reward's votes, every pair in both orders:
  python -m jaxrl_mm.evaluate --model DIR --benchmark vl_rewardbench \\
    --data DIR --runs 15 --ks 1 5 15 --temperature 1 --max-tokens 4096 \\
    --max-pixels 501760 --both-orders

DIR of --model is a published checkpoint or the folder of a run. The results of
each benchmark are in OUT/<benchmark>, one line an item; the same command goes
on where it was stopped. The table is in OUT/table.md and OUT/table.json.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)

from jaxrl_mm import inputs, metrics, sharding, weights
from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import (
  answers,
  benchmarks,
  conversation,
  pairwise,
  table,
)
from jaxrl_mm.evaluate.answers import Drawing
from jaxrl_mm.evaluate.items import Benchmark, Item
from jaxrl_mm.evaluate.run import (
  Protocol,
  end_with_parent,
  only_answer,
  run_benchmark,
)
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.rewards.endpoint import Endpoint
from jaxrl_mm.rewards.judge import Judge, JudgeDown
from jaxrl_mm.sampling.weights import to_decode
from jaxrl_mm.train.loop import Setting

Work = dict[str, tuple[Benchmark, list[Item]]]


def evaluate(args: argparse.Namespace) -> dict[str, dict[str, table.Row]]:
  """Does what the command line asks for; returns the tables by benchmark."""
  check(args)
  judge = make_judge(args)
  work = read_benchmarks(args)
  mesh = sharding.make_mesh(1, -1, args.tensor)
  with jax.set_mesh(mesh), _graders() as pool:
    setting, params = load_model(args, mesh)
    check_model(setting, work, args)
    summaries = {
      name: _run(args, name, *of_name, setting, params, judge, pool)
      for name, of_name in work.items()
    }
  if jax.process_index():
    return {}
  tables = table.write(args.out, args.model.name, summaries)
  for name, found in tables.items():
    metrics.print_table(table.title(name), table.text(found, ours=True))
    print(table.notes(name, summaries[name]))
  print(f"Written to {args.out / 'table.md'} and {args.out / 'table.json'}.")
  return tables


def _graders() -> Executor:
  # Not forked from this process, whose threads a child would wait for.
  start = get_context("forkserver")
  return ProcessPoolExecutor(os.cpu_count(), start, end_with_parent)


def _run(args, name, benchmark, items, setting, params, judge, pool) -> dict:
  """One benchmark."""
  protocol = Protocol(
    model=_describe(args, setting),
    samples=args.runs,
    batch=args.batch,
    ks=tuple(args.ks),
    judge=judge if benchmark.judged else None,
  )
  if setting.model.value_head:
    answer = answers.make_preference(setting, params)
  else:
    answer = answers.make_answer(setting, params, _drawing(args))
  if benchmark.follow:
    once = dataclasses.replace(_drawing(args), samples=1)
    answer = conversation.hold(
      answer,
      answers.make_answer(setting, params, once),
      benchmark.follow,
      partial(answers.fits, setting),
      pool.submit,
    )
  if jax.process_index():
    only_answer(benchmark, items, answer, protocol)
    return {}
  with _bar(name, len(items)) as progress:
    return run_benchmark(
      benchmark,
      items,
      answer,
      args.out / name,
      protocol,
      submit=pool.submit,
      progress=progress,
    )


def _drawing(args) -> Drawing:
  return Drawing(
    samples=args.runs,
    temperature=args.temperature,
    top_p=args.top_p,
    slots=args.slots,
  )


def _describe(args, setting) -> str:
  """The model and all that its answers depend on, for the head of a file."""
  saved = args.model.glob("**/checkpoints/*")
  return json.dumps(
    {
      "folder": str(args.model.resolve()),
      "checkpoints": sorted(str(p.relative_to(args.model)) for p in saved),
      "drawing": dataclasses.asdict(_drawing(args)) | {"slots": None},
      "layout": repr(setting.layout),
      "seed": setting.seed,
    }
  )


@contextlib.contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
  """A progress bar; gives the function that is told how many are done."""
  speed = TextColumn("{task.fields[speed]}")
  looks = (BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
  with Progress(TextColumn(f"[bold]{name}"), *looks) as bar:
    task = bar.add_task("", total=total, speed="")
    start = None

    def progress(done: int) -> None:
      nonlocal start
      # Those of an earlier run are done at once.
      start = start or (done, time.perf_counter())
      rate = (done - start[0]) / max(time.perf_counter() - start[1], 1e-6)
      bar.update(task, completed=done, speed=f"{rate:.2f} items/s")
      if not bar.console.is_terminal:
        print(f"  {name} {done}/{total}  {rate:.2f} items/s", flush=True)

    yield progress


# ------------------------------------------------- before the model is read
def check(args: argparse.Namespace) -> None:
  """Raises InputError where the command line contradicts itself."""
  if args.runs > 1 and args.temperature == 0:
    raise InputError(
      f"{args.runs} runs at temperature 0 are one and the same; set "
      "--temperature, or --runs to 1"
    )
  if args.ks and max(args.ks) > args.runs:
    raise InputError(
      f"--ks has {max(args.ks)} and there are {args.runs} runs; raise --runs"
    )


def read_benchmarks(args: argparse.Namespace) -> Work:
  """The items of all benchmarks by name.

  Raises:
    InputError: there is no such benchmark, or its folder is not as published.
  """
  folders = {name: _folder(args.data, name) for name in args.benchmark}
  for name, folder in folders.items():
    benchmarks.check_folder(name, folder)
  work = {}
  for name, folder in folders.items():
    benchmark = benchmarks.find(name)
    items = benchmark.read(folder)[: args.limit]
    if args.both_orders and items and items[0].responses:
      benchmark, items = (
        pairwise.with_orders(benchmark),
        pairwise.both_orders(items),
      )
    work[name] = benchmark, items
  return work


def _folder(data: Path | None, name: str) -> Path | None:
  """The folder of a benchmark's name, where there is one, or the whole."""
  inside = data and data / name
  return inside if inside and inside.is_dir() else data


def make_judge(args: argparse.Namespace) -> Judge | None:
  """The judge behind an endpoint, if one is named."""
  if not args.judge:
    return None
  return Endpoint(args.judge, model=args.judge_model)


# ---------------------------------------------------------------- the model
def load_model(args: argparse.Namespace, mesh: Mesh) -> tuple[Setting, Params]:
  """A published checkpoint, or the weights a run has reached.

  In the layout they are decoded with, except those of a scalar reward model.
  """
  e = describe(args)
  params = weights.of_folder(e, args.model, mesh)
  if not e.model.value_head:
    params = to_decode(e.model, params)
  return inputs.make_setting(e, mesh), params


def describe(args: argparse.Namespace) -> Experiment:
  """The model, with the room that the command line gives its questions."""
  e = weights.describe(args.model)
  given = {
    "prompt_tokens": args.prompt_tokens,
    "completion_tokens": args.max_tokens,
    "max_tiles": args.max_tiles,
    "max_pixels": args.max_pixels,
  }
  given = {name: value for name, value in given.items() if value is not None}
  data = dataclasses.replace(e.data, **given)
  return dataclasses.replace(e, data=data, seed=args.seed)


def check_model(setting: Setting, work: Work, args: argparse.Namespace) -> None:
  """Raises InputError where a scalar reward model is asked for words."""
  if not setting.model.value_head:
    return
  for name, (_, items) in work.items():
    if not items[0].responses or args.runs > 1:
      raise InputError(
        f"{args.model} is a scalar reward model, which compares two responses "
        f"once; do not ask it '{name}' with --runs {args.runs}"
      )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    prog="python -m jaxrl_mm.evaluate",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--model", type=Path, required=True, metavar="DIR")
  add("--benchmark", nargs="+", required=True, metavar="NAME")
  add("--data", type=Path, metavar="DIR", help="of the benchmark, or of all")
  add("--out", type=Path, default=Path("runs/evaluation"), metavar="DIR")
  add("--runs", type=int, default=1, help="answers to each question")
  add("--ks", type=int, nargs="+", default=[], help="of voting@k and any@k")
  add("--temperature", type=float, default=0.0, help="0 is greedy")
  add("--top-p", type=float, default=1.0)
  add("--seed", type=int, default=0)
  add("--max-tokens", type=int, help="of an answer")
  add("--prompt-tokens", type=int, help="config.data.prompt_tokens")
  add("--max-tiles", type=int, help="of a picture, for InternVL")
  add("--max-pixels", type=int, help="the same for Qwen2.5-VL")
  add("--both-orders", action="store_true", help="of the two responses")
  add("--limit", type=int, help="the first items only, to try")
  add("--judge", metavar="URL", help="OpenAI-compatible, up to /v1")
  add("--judge-model", default="", metavar="NAME")
  add("--batch", type=int, default=64, help="questions asked at once")
  add("--slots", type=int, default=256, help="answers written at once")
  add("--tensor", type=int, default=1, help="devices that share the weights")
  return parser.parse_args(argv)


if __name__ == "__main__":
  try:
    args = parse()
    sharding.join_processes(os.environ)
    evaluate(args)
    sharding.wait_for_all("the end")  # the first process grades and writes
  except (InputError, JudgeDown) as error:
    sys.exit(f"error: {error}")
