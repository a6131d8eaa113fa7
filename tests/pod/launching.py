"""Runs of `tiny.py` by launch/local_pod.sh, and what they left."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app

from jaxrl_mm import experiment, main, metrics, pytree, sharding, weights

ROOT = Path(__file__).parents[2]


def start(folder, variant, processes, devices, *flags) -> subprocess.Popen:
  """Starts a run of `processes` with so many devices each."""
  return subprocess.Popen(
    [
      ROOT / "launch" / "local_pod.sh",
      str(processes),
      f"--config=tests/pod/tiny.py:{variant}",
      f"--workdir={folder}",
      *(f"--config.{flag}" for flag in flags),
    ],
    cwd=ROOT,
    env=os.environ
    | {
      "PYTHON": sys.executable,
      "DEVICES": str(devices),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "PYTHONPATH": str(ROOT),
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def train(folder):
  """What `python -m jaxrl_mm.main` does, on one device with many saves."""
  flags = "loop.save_every=1", "sft.steps=25", "policy.steps=25"
  flags += "mesh.data=1", "mesh.fsdp=1", "mesh.tensor=1"
  config = f"--config={ROOT}/tests/pod/tiny.py:short"
  given = [f"--config.{flag}" for flag in flags]
  # The changes of a config are looked for there.
  sys.argv = ["train", config, f"--workdir={folder}", *given]
  app.run(main.main, flags_parser=main.parse)


def start_two(script, *arguments) -> list[subprocess.Popen]:
  """Two processes of a script of this folder, without a launcher."""
  environ = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=2"),
    "PYTHONPATH": str(ROOT),
    "JAXRL_COORDINATOR": f"127.0.0.1:{free_port()}",
    "JAXRL_PROCESSES": "2",
  }
  return [
    subprocess.Popen(
      [sys.executable, Path(__file__).parent / script, *arguments],
      env=environ | {"JAXRL_PROCESS": str(number)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for number in (0, 1)
  ]


def free_port() -> int:
  """One that nobody listens to yet."""
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


def children(process) -> list[int]:
  """The trainers of a launcher, in the order in which they started."""
  listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
  return [int(pid) for pid in listed.read_text().split()]


def finish(process, limit=3000) -> str:
  """Waits for the end of a run, which must be a good one."""
  output, _ = process.communicate(timeout=limit)
  assert process.returncode == 0, output[-3000:]
  return output


def lines(folder, stage) -> list[dict]:
  """What a stage wrote step by step, but for the clocks."""
  clocks = "seconds", "unix_seconds", "tokens_per_second", "goodput"
  left_out = (*clocks, "compilations")
  return [
    {
      k: v
      for k, v in line.items()
      if k not in left_out and not k.endswith("_seconds")
    }
    for line in metrics.read_lines(folder / stage / "metrics.jsonl")
  ]


def final(folder) -> dict[str, np.ndarray]:
  """Every array of the last checkpoint of each training, by its path."""
  arrays, reader = {}, ocp.PyTreeCheckpointer()
  # On whatever devices they were.
  as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
  for checkpoints in sorted(folder.glob("**/checkpoints")):
    steps = (int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())
    path = checkpoints / str(max(steps)) / "state"
    held = reader.metadata(path).item_metadata.tree
    args = jax.tree.map(lambda _: as_numpy, held)
    state = reader.restore(path, restore_args=args)
    where = str(checkpoints.relative_to(folder))
    for path, x in jax.tree.flatten_with_path(state)[0]:
      arrays[where + jax.tree_util.keystr(path)] = x
  return arrays


def moved(folder) -> dict[str, np.ndarray]:
  """How far the policy's weights went from start to end, by their path."""
  e, mesh = experiment.read(folder), sharding.make_mesh()
  start, end = weights.initial(e, mesh), weights.final(e, folder, mesh)
  return {
    name: np.asarray(x) - np.asarray(y)
    for (name, x), (_, y) in zip(*map(pytree.named_leaves, (end, start)))
  }


def moments(folder) -> dict[str, np.ndarray]:
  """The mean gradient that each training ended with, by its path."""
  return {k: x for k, x in final(folder).items() if "'mu'" in k}


def summary(folder) -> dict:
  return json.loads((folder / "summary.json").read_text())


def check_equal(one, other, stages, but=()):
  """Two runs have the same losses, gradients and final weights, to rounding.

  Metrics named in `but` may differ.
  """
  for stage in stages:
    for a, b in zip(lines(one, stage), lines(other, stage), strict=True):
      assert a.keys() == b.keys()
      for name in a.keys() - set(but):
        np.testing.assert_allclose(
          a[name], b[name], rtol=2e-3, atol=1e-4, err_msg=f"{stage} {name}"
        )
  # Adam follows the sign of a gradient however small, so weights can be apart
  # by as much as they moved; together they must not be.
  for of in moved, moments:
    a, b = of(one), of(other)
    assert a.keys() == b.keys() and b
    apart = norm(a[name] - b[name] for name in b) / norm(b.values())
    print(f"{of.__name__}: apart by {apart:.2%} of what they are")
    assert apart < 0.05


def norm(arrays) -> float:
  """Of all numbers together."""
  return (
    sum(float(np.sum(np.square(x, dtype=np.float64))) for x in arrays) ** 0.5
  )
