"""Lines, truncation after a kill, and tokens per second."""

import json
import os
import time

import jax
import jax.numpy as jnp
import pytest

from jaxrl_mm import metrics


def _write(folder, start, numbers):
  with metrics.MetricsWriter(folder, start, 10, ("loss",)) as writer:
    clock = time.perf_counter()
    for n in numbers:
      row = {"loss": jnp.float32(n), "tokens": 8}
      writer.write(n, row, clock + 2 * n)


def test_one_line_a_step(tmp_path):
  _write(tmp_path, 0, (1, 2))
  lines = metrics.read_lines(tmp_path / "metrics.jsonl")
  assert [line["step"] for line in lines] == [1, 2]
  assert [line["loss"] for line in lines] == [1.0, 2.0]
  assert abs(lines[1]["tokens_per_second"] - 4) < 1e-6
  assert list((tmp_path / "tensorboard").glob("events*"))


def test_goodput_is_what_the_steps_needed_of_the_wall(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, "time", lambda: now[0])
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  row = {"tokens": 8}

  def write(start, numbers, seconds):
    with metrics.MetricsWriter(tmp_path, start, 10, ()) as writer:
      for n in numbers:
        now[0] += seconds[n]
        writer.write(n, row, now[0])

  write(0, (1, 2, 3), {1: 8, 2: 2, 3: 2})  # the first compiles
  now[0] += 20  # the machine was away
  write(2, (3, 4), {3: 2, 4: 2})
  lines = metrics.read_lines(tmp_path / "metrics.jsonl")
  assert lines[1]["goodput"] == 1.0  # 2 steps of 5 s, the median so far
  assert lines[3]["goodput"] == pytest.approx(4 * 2 / 36)


def test_a_continued_run_drops_the_steps_it_repeats(tmp_path):
  _write(tmp_path, 0, (1, 2, 3))
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 4, "lo')  # cut by a kill
  _write(tmp_path, 2, (3, 4))
  steps = [line["step"] for line in metrics.read_lines(path)]
  assert steps == [1, 2, 3, 4]


def test_samples_are_dropped_with_their_steps(tmp_path):
  samples = tmp_path / "samples.jsonl"
  metrics.append_lines(samples, [{"step": 1}, {"step": 5}])
  _write(tmp_path, 3, (4,))
  assert metrics.read_lines(samples) == [{"step": 1}]


def test_write_text_leaves_no_half_file(tmp_path):
  path = tmp_path / "summary.json"
  metrics.write_text(path, json.dumps({"a": 1}))
  metrics.write_text(path, json.dumps({"a": 2}))
  assert json.loads(path.read_text()) == {"a": 2}
  assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_compilations_are_counted():
  before = metrics.compilations()
  f = jax.jit(lambda x: x * 3 + 1)
  f(jnp.ones(7))
  after = metrics.compilations()
  f(jnp.ones(7))
  assert after > before
  assert metrics.compilations() == after


def test_table_prints_every_cell(capsys):
  metrics.print_table("Results", [{"stage": "sft", "accuracy": "61 %"}])
  printed = capsys.readouterr().out
  assert "Results" in printed and "sft" in printed and "61 %" in printed


def test_the_first_process_alone_changes_files(tmp_path, monkeypatch):
  path = tmp_path / "rounds.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n')
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  metrics.keep_until(path, 1)
  metrics.append_lines(path, [{"step": 3}])
  assert [line["step"] for line in metrics.read_lines(path)] == [1, 2]
  monkeypatch.undo()
  metrics.keep_until(path, 1)
  assert [line["step"] for line in metrics.read_lines(path)] == [1]


def test_lines_reach_the_disk_when_asked(tmp_path, monkeypatch):
  synced = []
  monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file)))
  with metrics.MetricsWriter(tmp_path, 0, 10, ()) as writer:
    writer.write(1, {"tokens": 8}, time.perf_counter() + 1)
    before = len(synced)
    writer.sync()
  (file,) = synced[before : before + 1]
  assert os.path.samestat(file, (tmp_path / "metrics.jsonl").stat())
