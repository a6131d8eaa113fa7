"""Benchmarks run, at sizes that take no time."""

import json
import runpy
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_losses(tmp_path, monkeypatch, capsys):
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


def test_rollout(tmp_path, monkeypatch, capsys):
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
