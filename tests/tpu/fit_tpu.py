"""The policy stage of a 7B run, compiled for a slice: `make tpu`.

`make fit` compiles the whole run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fit(*flags):
  command = [sys.executable, "-m", "benchmarks.fit", *flags]
  quickly = os.environ | {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1"}
  return subprocess.run(
    command, cwd=ROOT, env=quickly, capture_output=True, text=True
  )


def test_reinforcement_with_seven_billion_weights_fits_sixteen_chips(tmp_path):
  told = tmp_path / "fit.jsonl"
  slice_ = "--topology=v5p:2x2x4", "--only=^policy", f"--json={told}"
  done = fit("configs/r1_reward_7b.py", *slice_)
  assert done.returncode == 0, done.stderr
  found = {
    f["program"]: f for f in map(json.loads, told.read_text().splitlines())
  }
  assert list(found) == ["reshard", "prefill", "decode", "resize", "train step"]
  assert all(f["fits"] and f["chips"] == 16 for f in found.values())
  decode, train = found["decode"], found["train step"]
  # bfloat16 weights, whole on each chip; the caches lie beside them.
  assert 2 * 7.6e9 < decode["arguments_bytes"] < decode["chip_bytes"]
  # Weights and moments in float32, cut over the chips.
  assert 3 * 4 * 7.6e9 / 16 < train["arguments_bytes"] < train["chip_bytes"]
  assert decode["bound"] == "memory" and train["bound"] == "compute"


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
  assert lines[-1] == "smallest slice: v6e:4x4, v6e-16"


def test_an_axis_may_be_a_part_of_a_side_of_the_slice():
  slice_ = "--topology=v6e:4x8", "--config.mesh.tensor=2"
  done = fit("configs/r1_reward_7b.py", *slice_, "--only=no program")
  assert done.returncode == 1
  # There is a mesh; what stands before the programs has been passed.
  told = "error: --only 'no program' matches none of evaluation reshard, "
  assert told in done.stderr


def test_an_unknown_chip_is_one_sentence():
  done = fit("configs/digits_r1v2.py", "--topology=v1:2x2")
  assert done.returncode == 1
  last = done.stderr.splitlines()[-1]
  assert last.startswith("error: --topology has no 'v1'")


def test_a_search_that_finds_nothing_fails():
  asked = "--search", "--topology=v6e", "--config.mesh.tensor=3"
  done = fit("configs/r1_reward_7b.py", *asked, "--only=policy resize")
  assert done.returncode == 1
  assert done.stdout.splitlines()[-1] == "smallest slice: none fits"
