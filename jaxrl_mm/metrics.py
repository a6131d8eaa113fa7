"""Where numbers go: JSON lines, TensorBoard, and a bar for people."""

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import rich
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)
from rich.table import Table
from tensorboardX import SummaryWriter

_COMPILATIONS = 0


def _count_compilation(event: str, seconds: float, **_: Any) -> None:
  global _COMPILATIONS
  if event == "/jax/core/compile/backend_compile_duration":
    _COMPILATIONS += 1


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def compilations() -> int:
  """Programs XLA has compiled in this process so far."""
  return _COMPILATIONS


class MetricsWriter:
  """Writes `metrics.jsonl`, event files and the progress bar of one stage.

  A context manager. In a run of several processes only the first writes.

  Args:
    folder: of the stage.
    start: step the stage continues from; later lines of an interrupted run
      are dropped, for those steps are done again.
    steps: of the whole stage.
    headline: names of the metrics shown on the bar.
  """

  def __init__(
    self, folder: Path, start: int, steps: int, headline: Sequence[str]
  ):
    self._active = jax.process_index() == 0
    self._headline, self._steps = headline, steps
    self._began = self._last = time.perf_counter()
    if not self._active:
      return
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.jsonl", "samples.jsonl"):
      keep_until(folder / name, start)
    self._took, self._born = [], time.time()
    lines = read_lines(folder / "metrics.jsonl")
    if lines:
      # The clock of an interrupted run goes on, and so does that on the wall.
      self._began -= lines[-1]["seconds"]
      self._born = lines[0]["unix_seconds"] - lines[0]["seconds"]
      self._took = [x["tokens"] / x["tokens_per_second"] for x in lines]
    self._file = (folder / "metrics.jsonl").open("a")
    self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
    self._bar = Progress(
      TextColumn(f"[bold]{folder.name}"),
      BarColumn(),
      MofNCompleteColumn(),
      TextColumn("{task.fields[headline]}"),
      TimeRemainingColumn(),
    )
    self._task = self._bar.add_task(
      "", total=steps, completed=start, headline="compiling"
    )

  def __enter__(self) -> "MetricsWriter":
    if self._active:
      self._bar.start()
    return self

  def __exit__(self, *_: object) -> None:
    if self._active:
      self._bar.stop()
      self._events.close()
      self._file.close()

  def write(
    self, step: int, metrics: Mapping[str, Any], clock: float
  ) -> dict[str, float]:
    """Writes one line and returns the metrics as plain floats.

    Waits for the device, so the loop calls it one step late. `clock` is
    `time.perf_counter()` when the step returned; the `tokens` of a step give
    `tokens_per_second` over the time since the step before.
    """
    scalars = {k: float(v) for k, v in jax.device_get(metrics).items()}
    took = clock - self._last
    scalars["tokens_per_second"] = scalars["tokens"] / took
    self._last = clock
    if self._active:
      self._took.append(took)
      scalars["goodput"] = self._goodput()
      clocks = {
        "seconds": round(clock - self._began, 3),
        "unix_seconds": round(time.time(), 3),
      }
      line = {"step": step} | clocks | scalars
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()
      for name, value in scalars.items():
        self._events.add_scalar(name, value, step)
      self._show(step, scalars)
    return scalars

  def sync(self) -> None:
    """Returns when the lines so far would survive the machine.

    A mounted bucket has what was written to an open file only then. No
    checkpoint may be ahead of its lines.
    """
    if self._active:
      os.fsync(self._file.fileno())

  def _goodput(self):
    """Share of the time since the stage first began that its steps needed.

    A step needs the median; compilation, saving, probes, the wait for a
    machine and steps that a kill made vain are what is missing to 1.
    """
    needed = len(self._took) * statistics.median(self._took)
    return min(needed / max(time.time() - self._born, 1e-9), 1.0)

  def _show(self, step, scalars):
    shown = [f"{n} {scalars[n]:.3f}" for n in self._headline if n in scalars]
    headline = "  ".join(shown)
    self._bar.update(self._task, completed=step, headline=headline)
    every = max(self._steps // 10, 1)
    if not self._bar.console.is_terminal and step % every == 0:
      print(f"  step {step}/{self._steps}  {headline}", flush=True)


def keep_until(path: Path, step: int) -> None:
  """Drops the lines of a JSON-lines file that belong to later steps.

  A line cut short by a kill is dropped too. The file is replaced whole, by the
  first process alone.
  """
  if jax.process_index() != 0 or not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      if json.loads(line)["step"] <= step:
        kept.append(line + "\n")
    except json.JSONDecodeError:
      break
  write_text(path, "".join(kept))


def append_lines(path: Path, objects: Sequence[Mapping[str, Any]]) -> None:
  """Adds objects to a JSON-lines file; the first process alone writes."""
  if jax.process_index() == 0:
    with path.open("a") as file:
      file.writelines(json.dumps(o) + "\n" for o in objects)


def read_lines(path: Path) -> list[dict[str, Any]]:
  """All objects of a JSON-lines file; none where there is no file."""
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def write_text(path: Path, text: str) -> None:
  """Replaces a file at once: a reader sees the old text or the new."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  os.replace(temporary, path)


def print_table(title: str, rows: Sequence[Mapping[str, str]]) -> None:
  """A table whose columns are the keys of the rows."""
  if jax.process_index() != 0:
    return
  table = Table(title=title, title_justify="left")
  for i, name in enumerate(rows[0]):
    # Of a row the name is kept whole, of a column every letter.
    side = "right" if i else "left"
    table.add_column(name, justify=side, no_wrap=not i, overflow="fold")
  for row in rows:
    table.add_row(*row.values())
  rich.print(table)
