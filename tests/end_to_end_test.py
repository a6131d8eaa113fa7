"""The program itself: one run, a killed one, and one on eight devices."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxrl_mm import metrics

ROOT = Path(__file__).parent.parent
SMALL = (
  "sft.steps=6",
  "sft.batch=16",
  "sft.micro_batch=1",
  "policy.steps=8",
  "policy.prompts_per_step=8",
  "policy.samples_per_prompt=4",
  "policy.micro_batch=4",
  "policy.algorithm.capacity=16",
  "policy.refill=1",
  "policy.samples_every=2",
  "evaluation.size=32",
  "evaluation.batch=16",
  "loop.save_every=2",
)


def _command(workdir, *settings):
  return [
    sys.executable,
    *("-W", "error::DeprecationWarning:jaxrl_mm"),
    *("-m", "jaxrl_mm.main", f"--workdir={workdir}"),
    "--config=configs/digits_r1v2.py",
    *(f"--config.{setting}" for setting in (*SMALL, *settings)),
  ]


def _environment(tmp, devices):
  return os.environ | {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(tmp / "xla"),
  }


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
  return tmp_path_factory.mktemp("runs")


def _run(tmp, name, *settings, devices=1):
  done = subprocess.run(
    _command(tmp / name, *settings),
    cwd=ROOT,
    env=_environment(tmp, devices),
    capture_output=True,
    text=True,
    timeout=300,
  )
  return done


@pytest.fixture(scope="module")
def whole(tmp):
  """A run from start to end on one device."""
  done = _run(tmp, "whole")
  assert done.returncode == 0, done.stderr
  return tmp / "whole", done.stdout


def _final(folder):
  """Every array of the last checkpoint of a run, as bytes by path."""
  state = ocp.PyTreeCheckpointer().restore(
    folder / "policy" / "checkpoints" / "8" / "state"
  )
  leaves = jax.tree.flatten_with_path(state)[0]
  return {jax.tree_util.keystr(k): _bits(x) for k, x in leaves}


def _bits(x):
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  return np.asarray(x).tobytes()


def test_the_folder_of_a_run(whole):
  folder, printed = whole
  summary = json.loads((folder / "summary.json").read_text())
  assert list(summary["stages"]) == ["sft", "policy"]
  for stage in summary["stages"].values():
    assert 0 <= stage["accuracy"] <= 1 and 0 <= stage["format"] <= 1
  policy = summary["stages"]["policy"]
  assert policy["effective"] >= policy["effective_without_buffer"]
  for name, steps in (("sft", 6), ("policy", 8)):
    lines = metrics.read_lines(folder / name / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert all(np.isfinite(v) for line in lines for v in line.values())
  samples = metrics.read_lines(folder / "policy" / "samples.jsonl")
  assert {s["step"] for s in samples} == {1, 3, 5, 7}
  assert set(samples[0]["terms"]) == {"answer", "format"}
  assert "<IMG_CONTEXT>" in samples[0]["prompt"]
  assert "Held-out" in printed and str(folder) in printed


def test_nothing_compiles_after_the_first_steps(whole):
  for stage in ("sft", "policy"):
    lines = metrics.read_lines(whole[0] / stage / "metrics.jsonl")
    counts = [line["compilations"] for line in lines]
    assert counts[1] == counts[-1]


def test_the_sampler_and_the_trainer_agree(whole):
  lines = metrics.read_lines(whole[0] / "policy" / "metrics.jsonl")
  assert max(line["sampler_gap"] for line in lines) < 1e-5


def test_eight_devices_give_the_same_losses(whole, tmp):
  mesh = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")
  done = _run(tmp, "sharded", *mesh, devices=8)
  assert done.returncode == 0, done.stderr
  for stage in ("sft", "policy"):
    one = metrics.read_lines(whole[0] / stage / "metrics.jsonl")
    many = metrics.read_lines(tmp / "sharded" / stage / "metrics.jsonl")
    for name in ("loss", "gradient_norm", "entropy"):
      np.testing.assert_allclose(
        [line[name] for line in many],
        [line[name] for line in one],
        rtol=2e-3,
        atol=1e-4,
        err_msg=f"{stage} {name}",
      )


# Only the bits are compared, on the devices that wrote them.
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_killed_anywhere_it_ends_with_the_same_bits(whole, tmp):
  folder = tmp / "killed"
  path = folder / "policy" / "metrics.jsonl"
  rng = random.Random()
  for moment in (rng.randint(1, 3), rng.randint(4, 7)):
    process = subprocess.Popen(
      _command(folder),
      cwd=ROOT,
      env=_environment(tmp, 1),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
    )
    limit = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < limit:
      if path.exists() and path.read_text().count("\n") >= moment:
        break
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before the kill"
  done = _run(tmp, "killed")
  assert done.returncode == 0, done.stderr
  assert _final(folder) == _final(whole[0])
  mine, other = (
    [
      {k: v for k, v in line.items() if "second" not in k and k != "goodput"}
      for line in metrics.read_lines(f / "policy" / "metrics.jsonl")
    ]
    for f in (folder, whole[0])
  )
  for a, b in zip(mine, other, strict=True):
    assert a | {"compilations": 0} == b | {"compilations": 0}


@pytest.mark.parametrize(
  "setting, message",
  [
    ("policy.micro_batch=5", r"micro_batch \(5\)"),
    ("data.demonstrations=nowhere.jsonl", "cannot read the data file nowhere"),
    ("polcy.steps=3", "no such value.*policy"),
  ],
)
def test_a_mistake_is_one_sentence(tmp, setting, message):
  done = _run(tmp, "mistake", setting)
  assert done.returncode == 1
  assert done.stderr.startswith("error: ")
  assert "Traceback" not in done.stderr
  assert re.search(message, done.stderr, re.DOTALL)
  assert not (tmp / "mistake" / "sft").exists()


def test_another_config_is_refused(whole, tmp):
  done = _run(tmp, "whole", "policy.steps=9")
  assert done.returncode == 1
  assert "policy.steps is 8 there and 9 here" in done.stderr
