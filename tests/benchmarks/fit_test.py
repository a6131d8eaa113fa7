"""A program of a 7B run, compiled for a slice; `make fit` compiles them all."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def fit(*flags):
  command = [sys.executable, "-m", "benchmarks.fit", *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(
  not importlib.util.find_spec("libtpu"), reason="needs the extra 'tpu'"
)
def test_decoding_with_seven_billion_weights_fits_sixteen_chips(tmp_path):
  told = tmp_path / "fit.jsonl"
  slice_ = "--topology=v5p:2x2x4", "--only=policy decode", f"--json={told}"
  done = fit("configs/r1_reward_7b.py", *slice_)
  assert done.returncode == 0, done.stderr
  (found,) = map(json.loads, told.read_text().splitlines())
  assert found["fits"] and found["chips"] == 16
  # bfloat16 weights, whole on each chip; the caches lie beside them.
  assert 2 * 7.6e9 < found["arguments_bytes"] < found["chip_bytes"]
  assert found["bound"] == "memory"  # as decoding should be


def test_an_unknown_chip_is_one_sentence():
  done = fit("configs/digits_r1v2.py", "--topology=v1:2x2")
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith(
    "error: --topology has no 'v1'"
  )
