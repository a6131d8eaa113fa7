"""The program itself: one run, a killed one, and one of two processes."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxrl_mm import experiment, metrics, sharding, weights

ROOT = Path(__file__).parent.parent
# The cold start is just long enough to be right now and then, or there would
# be no pairs.
SMALL = (
  "assemble.text.steps=2",
  "assemble.text.batch=16",
  "assemble.align.steps=2",
  "assemble.align.batch=16",
  "sft.steps=30",
  "sft.batch=32",
  "sft.optimizer.learning_rate=3e-3",
  "sft.optimizer.warmup_steps=5",
  "sft.micro_batch=8",
  "reward_model.collect.prompts=32",
  "reward_model.steps=2",
  "reward_model.batch=16",
  "preference.collect.prompts=32",
  "preference.threshold=-100.0",
  "preference.steps=2",
  "preference.batch=16",
  "policy.steps=8",
  "policy.prompts_per_step=8",
  "policy.samples_per_prompt=4",
  "policy.micro_batch=8",
  "policy.micro_tokens=150",
  "policy.algorithm.capacity=16",
  "policy.refill=1",
  "policy.samples_every=2",
  "policy.probe_every=4",
  "policy.pool=32",
  "evaluation.size=32",
  "evaluation.batch=16",
  "loop.save_every=2",
)


def _flags(workdir, *settings):
  return [
    f"--workdir={workdir}",
    "--config=configs/digits_r1v2.py",
    *(f"--config.{setting}" for setting in (*SMALL, *settings)),
  ]


def _command(workdir, *settings):
  return [
    sys.executable,
    *("-W", "error::DeprecationWarning:jaxrl_mm"),
    *("-m", "jaxrl_mm.main", *_flags(workdir, *settings)),
  ]


def _environment(tmp):
  """One device; what one run has compiled the next one reads."""
  return os.environ | {
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1"),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(tmp / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
  return tmp_path_factory.mktemp("runs")


def _run(command, environment):
  return subprocess.run(
    command,
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=900,
  )


@pytest.fixture(scope="module")
def whole(tmp):
  """A run from start to end on one device."""
  done = _run(_command(tmp / "whole"), _environment(tmp))
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


def _moved(folder):
  """How far the first stage moved all weights."""
  e = dataclasses.replace(experiment.read(folder), stages=("assemble",))
  mesh = sharding.make_mesh()
  start, end = weights.initial(e, mesh), weights.final(e, folder, mesh)
  parts = jax.tree.map(lambda x, y: np.ravel(np.asarray(y) - x), start, end)
  return np.concatenate(jax.tree.leaves(parts))


# Stage -> its steps, all parts and rounds together.
STEPS = {
  "assemble": 6,
  "sft": 30,
  "reward_model": 4,
  "preference": 4,
  "policy": 8,
}


def test_the_folder_of_a_run(whole):
  folder, printed = whole
  summary = json.loads((folder / "summary.json").read_text())
  assert list(summary["stages"]) == list(STEPS)
  shares = ("accuracy", "format", "hallucination", "blind_same")
  for stage in summary["stages"].values():
    assert all(0 <= stage[name] <= 1 for name in shares)
  assert 0 <= summary["stages"]["reward_model"]["pair_accuracy"] <= 1
  policy = summary["stages"]["policy"]
  assert policy["effective"] >= policy["effective_without_buffer"]
  for name, steps in STEPS.items():
    lines = metrics.read_lines(folder / name / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert all(np.isfinite(v) for line in lines for v in line.values())
  samples = metrics.read_lines(folder / "policy" / "samples.jsonl")
  assert {s["step"] for s in samples} == {1, 3, 5, 7}
  terms = {"answer", "format", "hallucination", "learned"}
  assert set(samples[0]["terms"]) == terms
  lines = metrics.read_lines(folder / "policy" / "metrics.jsonl")
  assert [x["step"] for x in lines if "blind_gap" in x] == [1, 5]
  assert "<IMG_CONTEXT>" in samples[0]["prompt"]
  assert "Held-out" in printed and str(folder) in printed
  assert (folder / "report.html").exists()


def test_nothing_compiles_after_the_first_steps(whole):
  for stage in ("sft", "policy"):
    lines = metrics.read_lines(whole[0] / stage / "metrics.jsonl")
    counts = [line["compilations"] for line in lines]
    assert counts[1] == counts[-1]


def test_the_sampler_and_the_trainer_agree(whole):
  lines = metrics.read_lines(whole[0] / "policy" / "metrics.jsonl")
  assert max(line["sampler_gap"] for line in lines) < 1e-5


# Only the numbers are compared, on one device.
@pytest.mark.filterwarnings(
  "ignore:Sharding info not provided", "ignore:Couldn't find sharding info"
)
def test_two_processes_with_two_devices_each_train_alike(whole, tmp):
  # They pack their rows, the whole run takes them as they are.
  mesh = ("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2")
  packed = ("assemble.text.micro_tokens=100", "assemble.align.micro_tokens=100")
  # Later stages learn from what was drawn, where rounding can flip a token;
  # tests/pod compares them.
  stages = "stages=('assemble',)"
  folder = tmp / "two"
  done = _run(
    [
      ROOT / "launch" / "local_pod.sh",
      "2",
      *_flags(folder, stages, *mesh, *packed),
    ],
    os.environ
    | {
      "PYTHON": sys.executable,
      "DEVICES": "2",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    },
  )
  assert done.returncode == 0, done.stderr
  of = lambda folder: metrics.read_lines(folder / "assemble" / "metrics.jsonl")
  one, many = of(whole[0]), of(folder)
  for name in ("loss", "gradient_norm"):
    np.testing.assert_allclose(
      [line[name] for line in many],
      [line[name] for line in one],
      rtol=5e-3,
      atol=1e-4,
      err_msg=name,
    )
  # Adam follows the sign of a gradient however small, so single weights can be
  # apart by as much as they moved; together they must not be.
  one, many = _moved(whole[0]), _moved(folder)
  assert np.linalg.norm(many - one) < 0.05 * np.linalg.norm(one)
  told = json.loads((folder / "summary.json").read_text())
  assert told["stages"].keys() == {"assemble"}
  assert done.stdout.count("Held-out results") == 1  # the first process alone
  assert not list(folder.glob(".write_test*"))


# Only the bits are compared, on the devices that wrote them.
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_killed_anywhere_it_ends_with_the_same_bits(whole, tmp):
  folder = tmp / "killed"
  rng = random.Random()
  stage = rng.choice(list(STEPS))
  path = folder / stage / "metrics.jsonl"
  moment = rng.randint(1, STEPS[stage] - 1)
  process = subprocess.Popen(
    _command(folder),
    cwd=ROOT,
    env=_environment(tmp),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  limit = time.monotonic() + 600
  while process.poll() is None and time.monotonic() < limit:
    if path.exists() and path.read_text().count("\n") >= moment:
      break
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL, "it ended before the kill"
  done = _run(_command(folder), _environment(tmp))
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


def test_another_config_is_refused_in_one_sentence(whole, tmp):
  done = _run(_command(whole[0], "policy.steps=9"), _environment(tmp))
  assert done.returncode == 1
  assert done.stderr.startswith("error: ")
  assert "Traceback" not in done.stderr
  assert "policy.steps is 8 there and 9 here" in done.stderr
