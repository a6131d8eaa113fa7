"""The comparisons the two papers make, at laptop size.

  python benchmarks/ablations.py --out benchmarks/results
  python benchmarks/ablations.py --only ssb

stress       Reinforce++ against StableReinforce, with one wrong row among 255
             right ones and stale log-probs (see stress.py).
ssb          GRPO with and without the Selective Sample Buffer, both from the
             same cold start: rows that teach something, accuracy by tokens.
stages       SFT, MPO, MPO and then GRPO with the buffer: held-out accuracy and
             false claims.
calibration  A learned score five times as strong as the rule, with a threshold
             that stays and one that follows the share of false claims.

Three seeds each; mean and spread (lowest and highest) go to ablations.jsonl and
to one picture a comparison. All but the first train what configs/digits_r1v2.py
does, its policy stage a quarter as long. Their runs are kept in `--runs`: a
command that was interrupted goes on where it stopped, and a stage that two
comparisons need is trained once.
"""

import argparse
import dataclasses
import json
import runpy
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
import stress
from absl import logging
from matplotlib import pyplot as plt

from jaxrl_mm import experiment, metrics, run
from jaxrl_mm.algorithms.calibrate import Band
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.train.policy import LearnedConfig

ROOT = Path(__file__).parents[1]
POLICY_STEPS, STRESS_UPDATES = 100, 400
# Of the points of a curve, the mean of so many steps.
SMOOTH = 10


class Variant(NamedTuple):
  """A run and the run whose finished stages it starts with."""

  experiment: Experiment
  base: str = ""


class Curve(NamedTuple):
  """Seeds beside each other."""

  x: np.ndarray  # [steps]
  y: np.ndarray  # [seeds, steps]


# ------------------------------------------------------------------- runs
def variants(seed: int) -> dict[str, Variant]:
  """Every run of the digits by name."""
  config = runpy.run_path(str(ROOT / "configs" / "digits_r1v2.py"))
  demo = experiment.from_config(config["get_config"]())
  plain = dataclasses.replace(
    demo.policy, steps=POLICY_STEPS, learned=None, probe_every=0
  )
  grpo = dataclasses.replace(plain, algorithm={"name": "grpo", "clip": 0.2})
  strong = LearnedConfig(weight=5.0, threshold=0.0)
  band = Band(low=0.0, high=0.1, step=0.2, lowest=0.0, highest=10.0)
  calibrated = dataclasses.replace(strong, band=band)

  def of(policy=plain, *stages) -> Experiment:
    return dataclasses.replace(demo, seed=seed, stages=stages, policy=policy)

  start = ("assemble", "sft")
  scored = (*start, "reward_model")
  with_score = lambda learned: of(
    dataclasses.replace(plain, learned=learned), *scored, "policy"
  )
  return {
    "sft": Variant(of(plain, *scored)),
    "grpo": Variant(of(grpo, *start, "policy"), "sft"),
    "ssb": Variant(of(plain, *start, "policy"), "sft"),
    "mpo": Variant(of(plain, *scored, "preference"), "sft"),
    "mpo_grpo": Variant(of(plain, *scored, "preference", "policy"), "mpo"),
    "strong": Variant(with_score(strong), "sft"),
    "calibrated": Variant(with_score(calibrated), "sft"),
  }


def finish(name: str, seed: int, runs: Path) -> Path:
  """Trains what is left of a variant and gives back its folder."""
  variant, folder = variants(seed)[name], runs / f"{name}_{seed}"
  if variant.base and not folder.exists():
    base = finish(variant.base, seed, runs)
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    own = shutil.ignore_patterns("config.json", "report.html", "compiled")
    shutil.copytree(base, new, ignore=own)
    new.rename(folder)
  print(f"{name}, seed {seed}", flush=True)
  run.run(variant.experiment, folder)
  return folder


def curve(
  folders: Sequence[Path],
  name: str,
  by: Callable[[Mapping[str, float]], float] = lambda line: 1,
) -> Curve:
  """A metric of the policy stage, against the sum of `by`."""
  runs = [metrics.read_lines(f / "policy" / "metrics.jsonl") for f in folders]
  smooth = lambda rows: np.reshape(rows, (-1, SMOOTH)).mean(1)
  x = [np.cumsum([by(line) for line in lines]) for lines in runs]
  y = [smooth([line[name] for line in lines]) for lines in runs]
  return Curve(smooth(np.mean(x, axis=0)), np.array(y))


def held_out(folders: Sequence[Path], stage: str, name: str) -> Sequence[float]:
  """A result after a stage, of each seed."""
  read = lambda f: json.loads((f / "summary.json").read_text())
  return [read(folder)["stages"][stage][name] for folder in folders]


# ------------------------------------------------------------ comparisons
# (numbers of each variant by name, panels of curves by title)
Result = tuple[dict[str, dict[str, Any]], dict[str, dict[str, Curve]]]


def compare_stress(seeds: Sequence[int], runs: Path) -> Result:
  del runs
  numbers, right, norms = {}, {}, {}
  for name, algorithm in stress.ALGORITHMS.items():
    each = [
      stress.curves(algorithm, STRESS_UPDATES, jax.random.key(seed))
      for seed in seeds
    ]
    x = np.arange(1, STRESS_UPDATES + 1)
    right[name] = Curve(x, np.array([c.right for c in each]))
    norms[name] = Curve(x, np.array([c.gradient_norm for c in each]))
    numbers[name] = {
      "right at the end": right[name].y[:, -1],
      "largest gradient": norms[name].y.max(axis=1),
    }
  return numbers, {"Right answers": right, "Norm of the gradient": norms}


def compare_ssb(seeds: Sequence[int], runs: Path) -> Result:
  folders = {
    "GRPO": [finish("grpo", seed, runs) for seed in seeds],
    "GRPO with the buffer": [finish("ssb", seed, runs) for seed in seeds],
  }
  rows = variants(seeds[0])["ssb"].experiment.policy.rows
  tokens = lambda line: line["completion_tokens"] * rows / 1e6
  of = lambda name, by: {k: curve(f, name, by) for k, f in folders.items()}
  step = lambda line: 1
  numbers = {
    name: {
      "rows that teach something": held_out(f, "policy", "effective"),
      "held-out accuracy": held_out(f, "policy", "accuracy"),
    }
    for name, f in folders.items()
  }
  return numbers, {
    "Rows that teach something, by step": of("effective", step),
    "Accuracy of drawn answers, by million tokens": of("answer", tokens),
  }


def compare_stages(seeds: Sequence[int], runs: Path) -> Result:
  whole = [finish("mpo_grpo", seed, runs) for seed in seeds]
  rows = {
    "SFT": (whole, "sft"),
    "MPO": (whole, "preference"),
    "MPO, GRPO": (whole, "policy"),
    "GRPO alone": ([finish("ssb", seed, runs) for seed in seeds], "policy"),
  }
  of = lambda name: {k: held_out(*at, name) for k, at in rows.items()}
  accuracy, false = of("accuracy"), of("hallucination")
  numbers = {
    name: {"accuracy": accuracy[name], "false claims": false[name]}
    for name in rows
  }
  return numbers, {}


def compare_calibration(seeds: Sequence[int], runs: Path) -> Result:
  folders = {
    "no learned score": [finish("ssb", seed, runs) for seed in seeds],
    "strong": [finish("strong", seed, runs) for seed in seeds],
    "strong, calibrated": [finish("calibrated", seed, runs) for seed in seeds],
  }
  numbers = {
    name: {
      "false claims": held_out(f, "policy", "hallucination"),
      "accuracy": held_out(f, "policy", "accuracy"),
    }
    for name, f in folders.items()
  }
  false = {k: curve(f, "hallucination") for k, f in folders.items()}
  right = {k: curve(f, "answer") for k, f in folders.items()}
  moved = folders["strong, calibrated"]
  return numbers, {
    "False claims of drawn answers": false,
    "Accuracy of drawn answers": right,
    "Threshold": {"strong, calibrated": curve(moved, "threshold")},
  }


COMPARISONS = {
  "stress": compare_stress,
  "ssb": compare_ssb,
  "stages": compare_stages,
  "calibration": compare_calibration,
}


# ---------------------------------------------------------------- pictures
COLORS = ("#4269d0", "#c4501b", "#3a8f5c", "#8a5bb5")


def draw(path: Path, title: str, result: Result) -> None:
  """One picture: a panel a metric, mean and spread of each variant."""
  numbers, panels = result
  bars = {} if panels else next(iter(numbers.values()))
  count = len(panels) or len(bars)
  figure, axes = plt.subplots(
    1, count, figsize=(4.6 * count, 3.6), layout="constrained", squeeze=False
  )
  for axis, (name, curves) in zip(axes[0], panels.items()):
    draw_curves(axis, name, curves)
  for axis, name in zip(axes[0], bars):
    draw_bars(axis, name, {k: values[name] for k, values in numbers.items()})
  figure.suptitle(title, fontsize=11)
  figure.savefig(path, dpi=110)
  plt.close(figure)


def draw_curves(axis, name: str, curves: Mapping[str, Curve]) -> None:
  for color, (label, c) in zip(COLORS, curves.items()):
    axis.plot(c.x, c.y.mean(axis=0), color=color, label=label)
    low, high = c.y.min(axis=0), c.y.max(axis=0)
    axis.fill_between(c.x, low, high, color=color, alpha=0.2, linewidth=0)
  if name.startswith("Norm"):
    axis.set_yscale("log")
  axis.set_title(name, fontsize=10)
  axis.grid(alpha=0.3)
  axis.legend(fontsize=8)


def draw_bars(axis, name: str, values: Mapping[str, Sequence[float]]) -> None:
  means = np.array([np.mean(v) for v in values.values()])
  ends = np.array([(np.min(v), np.max(v)) for v in values.values()]).T
  spread = np.abs(ends - means)
  axis.bar(list(values), means, yerr=spread, capsize=4, color=COLORS)
  axis.set_title(name, fontsize=10)
  axis.tick_params(axis="x", labelsize=8)


def tell(comparison: str, numbers: Mapping[str, Mapping]) -> list[dict]:
  """Prints a table and gives back its lines as objects."""
  lines = [
    {"comparison": comparison, "variant": variant, "metric": metric}
    | {"mean": float(np.mean(values)), "values": [float(v) for v in values]}
    for variant, row in numbers.items()
    for metric, values in row.items()
  ]
  for line in lines:
    low, high = min(line["values"]), max(line["values"])
    print(
      f"{line['variant']:24}{line['metric']:28}"
      f"{line['mean']:9.4g}  ({low:.4g} to {high:.4g})"
    )
  return lines


def record(path: Path, comparison: str, lines: Sequence[dict]) -> None:
  """Replaces the lines of one comparison."""
  others = [
    x for x in metrics.read_lines(path) if x["comparison"] != comparison
  ]
  texts = [json.dumps(x) + "\n" for x in [*others, *lines]]
  metrics.write_text(path, "".join(texts))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", choices=COMPARISONS, help="one comparison")
  parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
  parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
  parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
  flags = parser.parse_args()
  matplotlib.use("agg")
  logging.set_verbosity(logging.ERROR)
  cache = str(flags.runs.absolute() / "compiled")
  jax.config.update("jax_compilation_cache_dir", cache)
  flags.out.mkdir(parents=True, exist_ok=True)
  for name in [flags.only] if flags.only else COMPARISONS:
    result = COMPARISONS[name](flags.seeds, flags.runs)
    print(f"\n{name}: mean (lowest to highest) of {len(flags.seeds)} seeds")
    record(flags.out / "ablations.jsonl", name, tell(name, result[0]))
    draw(flags.out / f"ablation_{name}.png", name, result)


if __name__ == "__main__":
  # As main.py does for one run.
  jax.config.update("jax_num_cpu_devices", 2)
  main()
