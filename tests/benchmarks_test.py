"""Benchmarks run, at sizes that take no time."""

import dataclasses
import importlib
import json
import runpy
import sys
from pathlib import Path

import jax
import pytest
from PIL import Image

from jaxrl_mm import preflight

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_losses(tmp_path, monkeypatch, capsys, quick_compile):
  sizes = "--rows 16 --tokens 8 --capacity 32 --replay_tokens 4 --repeats 1"
  file = tmp_path / "losses.jsonl"
  arguments = ["losses.py", *sizes.split(), "--json", str(file)]
  monkeypatch.setattr(sys, "argv", arguments)
  runpy.run_path(str(BENCHMARKS / "losses.py"), run_name="__main__")
  records = [json.loads(line) for line in file.read_text().splitlines()]
  names = [record["name"] for record in records]
  assert len(set(names)) == len(names) > 30
  assert all(r["seconds"] > 0 and r["floor_seconds"] > 0 for r in records)
  table = capsys.readouterr().out
  assert all(name in table for name in names)


def test_load(tmp_path, monkeypatch, capsys):
  sizes = "--layers 2 --width 256 --vocab 64 --shards 2 --repeats 1"
  file = tmp_path / "load.jsonl"
  arguments = ["load.py", *sizes.split(), "--json", str(file)]
  monkeypatch.setattr(sys, "argv", [*arguments, "--folder", str(tmp_path)])
  runpy.run_path(str(BENCHMARKS / "load.py"), run_name="__main__")
  cold, warm = [json.loads(line) for line in file.read_text().splitlines()]
  assert (cold["cache"], warm["cache"]) == ("cold", "warm")
  for record in (cold, warm):
    assert record["loaded_bytes"] < record["file_bytes"] < 1e7
    assert record["seconds"] > 0 and record["floor_seconds"] > 0
  assert "staging" in capsys.readouterr().out
  assert [path.name for path in tmp_path.iterdir()] == ["load.jsonl"]


def test_recorded_transforms_cost_under_two_percent_of_a_step():
  lines = (BENCHMARKS / "results" / "losses_cpu.jsonl").read_text().splitlines()
  assert len(lines) > 30
  for record in map(json.loads, lines):
    assert record["share_of_step"] < 0.02, record["name"]


def test_rollout(tmp_path, monkeypatch, capsys, quick_compile):
  file = tmp_path / "rollout.jsonl"
  sizes = "--scale 64 --repeats 1 --tunix_python nowhere"
  arguments = ["rollout.py", *sizes.split(), "--json", str(file)]
  monkeypatch.setattr(sys, "argv", arguments)
  runpy.run_path(str(BENCHMARKS / "rollout.py"), run_name="__main__")
  records = [json.loads(line) for line in file.read_text().splitlines()]
  assert [r["name"] for r in records] == [
    "shared, 32",
    "unshared, 32",
    "int8, 32",
    "equal, 512",
    "long tail, 512",
    "32 prompts: ours",
    "4 prompts x 8: ours",
    "4 x 8, prompt of 1000: ours",
    "32 pictures: ours",
    "4 pictures x 8: ours",
  ]
  assert all(r["useful"] > 0 for r in records)
  # No number of it: at this size a difference of times can be anything.
  assert all("of_floor" in r for r in records[:3])
  assert records[0]["error"] < 1e-4
  assert records[0]["error"] < records[2]["error"] < 0.1
  table = capsys.readouterr().out
  assert "transformers is skipped: give --transformers_python" in table
  assert "tunix is skipped: nowhere does not run it" in table


def test_train(tmp_path, monkeypatch, capsys, quick_compile):
  file = tmp_path / "train.jsonl"
  sizes = "--only texts --scale 16 --repeats 1 --tunix_python nowhere"
  arguments = ["train.py", *sizes.split(), "--json", str(file)]
  monkeypatch.setattr(sys, "argv", arguments)
  monkeypatch.syspath_prepend(BENCHMARKS.parent)
  runpy.run_module("benchmarks.train", run_name="__main__")
  (record,) = [json.loads(line) for line in file.read_text().splitlines()]
  assert record["name"] == "4 texts x 8: ours"
  parts = [record[x] for x in ("reshard", "sample", "reward", "update")]
  assert min(parts) > 0
  assert record["seconds"] == pytest.approx(sum(parts))
  # 32 rows of 4 + 4 tokens.
  assert record["tokens_per_second"] == pytest.approx(256 / record["seconds"])
  # By hand: 3.02e6 weights, a vocabulary of 1024. A prompt of 4 tokens, with 10
  # pairs, is run once; each of 8 answers has 4 tokens with the other 26.
  weights = 4 * (256 * 32 * (2 * 8 + 2 * 2) + 3 * 256 * 768)
  pair = 4 * 4 * 8 * 32
  prompts = 4 * (2 * weights * 4 + pair * 10)
  answers = 32 * (2 * weights * 4 + pair * 26 + 2 * 1024 * 256 * 4)
  forward = prompts + answers
  done = record["mfu"] * record["update"] * record["rate"]
  assert done == pytest.approx(3 * forward)
  assert record["update_bytes"] > 4 * 4 * weights
  table = capsys.readouterr().out
  assert "trl is skipped: give --trl_python" in table
  assert "tunix is skipped: nowhere does not run it" in table


@pytest.fixture
def ablations(monkeypatch):
  monkeypatch.syspath_prepend(BENCHMARKS)
  return importlib.import_module("ablations")


def test_ablations_start_from_stages_that_are_finished(ablations):
  every = ablations.variants(seed=3)
  for name, (e, base) in every.items():
    preflight.check_config(e, shards=2)
    assert e.seed == 3
    if base:
      before = every[base].experiment
      shared = [x for x in before.stages if x in e.stages]
      assert e.stages[: len(shared)] == tuple(shared), name
      # What the base has trained is what this one would train.
      same = {x: getattr(e, x) == getattr(before, x) for x in shared}
      assert all(same.values()), name
  strong, calibrated = (
    every[x].experiment.policy.learned for x in ("strong", "calibrated")
  )
  assert strong == dataclasses.replace(calibrated, band=None)


def _finished(name, seed, runs):
  """The folder of a run whose accuracy is its seed."""
  folder = runs / f"{name}_{seed}"
  (folder / "policy").mkdir(parents=True, exist_ok=True)
  names = ("answer", "effective", "hallucination", "threshold")
  lines = [
    {"step": n, "completion_tokens": 10.0} | dict.fromkeys(names, seed + n)
    for n in range(1, 21)
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "policy" / "metrics.jsonl").write_text(text)
  told = {"accuracy": seed, "hallucination": 0.5, "effective": 1.0}
  stages = dict.fromkeys(("sft", "preference", "policy"), told)
  (folder / "summary.json").write_text(json.dumps({"stages": stages}))
  return folder


@pytest.mark.parametrize("only", ["ssb", "stages", "calibration"])
def test_ablations_of_the_digits(ablations, only, tmp_path, monkeypatch):
  monkeypatch.setattr(ablations, "finish", _finished)
  flags = f"--only {only} --runs {tmp_path} --out {tmp_path}"
  monkeypatch.setattr(sys, "argv", ["ablations.py", *flags.split()])
  ablations.main()
  ablations.main()
  text = (tmp_path / "ablations.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  assert len(lines) == len({(x["variant"], x["metric"]) for x in lines})
  accuracy = [x for x in lines if "accuracy" in x["metric"]]
  assert all(x["mean"] == 2 and x["values"] == [1, 2, 3] for x in accuracy)
  with Image.open(tmp_path / f"ablation_{only}.png") as picture:
    assert picture.width > 400


def test_a_curve_is_the_mean_of_spans(ablations, tmp_path):
  folders = [_finished("ssb", seed, tmp_path) for seed in (1, 3)]
  tokens = lambda line: line["completion_tokens"]
  x, y = ablations.curve(folders, "answer", tokens)
  assert x.tolist() == [55, 155]
  assert y.tolist() == [[6.5, 16.5], [8.5, 18.5]]


def test_the_stress_breaks_reinforce_plus_plus(ablations):
  stress = ablations.stress
  of = lambda name: stress.curves(
    stress.ALGORITHMS[name], 60, jax.random.key(1)
  )
  plain, stable = of("Reinforce++"), of("StableReinforce")
  # Both start from the same policy, right in 255 of 256 answers.
  assert plain.right[0] > 0.98 and stable.right[0] > 0.98
  assert plain.right[-1] < 0.95
  assert stable.right[-1] > stable.right[0]
