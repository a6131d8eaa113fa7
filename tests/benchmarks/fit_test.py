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


needs_compiler = pytest.mark.skipif(
  not importlib.util.find_spec("libtpu"), reason="needs the extra 'tpu'"
)


@needs_compiler
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


@needs_compiler
def test_what_does_not_fit_is_named():
  """Heads too narrow for the kernel write the scores of 16k tokens."""
  asked = {
    "topology": "v5e:2x2",
    "only": "sft train",
    "config.data.completion_tokens": 16384,
    "config.sft.micro_batch": 2,
  }
  done = fit(
    "configs/digits_r1v2.py", *(f"--{k}={v}" for k, v in asked.items())
  )
  assert done.returncode == 1, done.stderr
  (line,) = (x for x in done.stdout.splitlines() if "largest: " in x)
  assert "attention" in line and "float32[" in line and "16412" in line
  assert (
    "would help: config.sft.micro_tokens, config.sft.micro_batch" in done.stdout
  )


@needs_compiler
def test_the_search_passes_over_slices_that_the_arrays_alone_fill():
  asked = "--search", "--topology=v6e:2x2", "--only=policy resize"
  done = fit("configs/r1_reward_7b.py", *asked)
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert [x for x in lines if x.startswith("v6e:")] == [
    "v6e:2x2",
    "v6e:2x4",
    "v6e:4x4",
  ]
  told = [x.split()[2:5] for x in lines if x.startswith("policy")]
  # Fits, arguments, temporaries: without the compiler there are none.
  assert [x[0] for x in told] == ["NO", "NO", "yes"]
  assert [x[2] == "0.00" for x in told] == [True, True, False]
  assert lines[-1] == "smallest slice: v6e:4x4"


@needs_compiler
def test_an_axis_may_be_a_part_of_a_side_of_the_slice():
  slice_ = "--topology=v6e:4x8", "--config.mesh.tensor=2"
  done = fit("configs/r1_reward_7b.py", *slice_, "--only=no program")
  assert done.returncode == 0, done.stderr


def test_an_unknown_chip_is_one_sentence():
  done = fit("configs/digits_r1v2.py", "--topology=v1:2x2")
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith(
    "error: --topology has no 'v1'"
  )
