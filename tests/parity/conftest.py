"""Comparisons beside torch itself: `make parity`. Not run by default.

What is measured is printed at the end, line by line as README.md has it.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxrl_mm import pytree, sharding
from jaxrl_mm.models.huggingface import families, load

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))

MEASURED = "family", "hidden states", "logits", "gradients", "greedy tokens"


def pytest_pycollect_makemodule():
  _torchvision_operators()


@functools.cache  # They go when the result goes.
def _torchvision_operators():
  """What a torchvision built for another torch wants to know.

  It cannot load its own operators, and nothing here calls them.
  """
  import torch

  if hasattr(torch.ops.torchvision, "nms"):
    return None
  operators = torch.library.Library("torchvision", "DEF")
  for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
  return operators


def pytest_terminal_summary(terminalreporter):
  reports = terminalreporter.getreports("passed")
  rows = sorted(
    row for r in reports for name, row in r.user_properties if name == "gaps"
  )
  if rows:
    terminalreporter.section("largest differences")
    for row in (MEASURED, ["---"] * len(MEASURED), *rows):
      terminalreporter.write_line(f"| {' | '.join(row)} |")


@pytest.fixture(scope="session")
def read_folder():
  """`folder of a checkpoint -> (config, params)`, by the real loader."""

  def read(folder):
    config = families.read_config(folder)
    config = dataclasses.replace(config, dtype="float32")
    placed = load.load_params(folder, config, sharding.make_mesh())
    return config, jax.device_get(placed)

  return read


@pytest.fixture(scope="session")
def read_gradients(tmp_path_factory):
  """`(torch model, config) -> its gradients`, as files and back."""

  def read(model, config):
    folder = tmp_path_factory.mktemp("gradients")
    model.config.save_pretrained(folder)
    named = {
      name: np.zeros(x.shape, np.float32) if x.grad is None else x.grad.numpy()
      for name, x in model.named_parameters()
    }
    save_file(named, folder / "model.safetensors")
    config = dataclasses.replace(config, value_head=False)
    placed = load.load_params(folder, config, sharding.make_mesh())
    return jax.device_get(placed)

  return read


@pytest.fixture(scope="session")
def equal_trees():
  """Asserts that two trees are the same to the bit."""

  def check(one, other):
    one, other = (dict(pytree.named_leaves(tree)) for tree in (one, other))
    assert one.keys() == other.keys()
    for name, x in one.items():
      assert x.dtype == other[name].dtype, name
      np.testing.assert_array_equal(x, other[name], err_msg=name)

  return check


@pytest.fixture
def compare(score, greedy, right_padded, record_property):
  """Hidden states, logits, gradients and 64 greedy tokens of one model.

  `arrays` holds what torch gave: "left/hidden", "right/hidden", "logits" and
  "greedy", each row by row with its padding; logits are right-padded.
  """

  def check(family, config, params, slopes, arrays, prompts, image_token):
    measure = score(config, image_token)
    hidden_gaps = []
    for side, rows in (("left", prompts), ("right", right_padded(prompts))):
      (_, (hidden, logits)), slope = measure(params, rows)
      real = np.asarray(rows.mask)
      gap = np.asarray(hidden) - arrays[f"{side}/hidden"]
      hidden_gaps.append(np.abs(gap[real]).max())
    logit_gap = np.abs(np.asarray(logits) - arrays["logits"])[real].max()
    theirs = dict(pytree.named_leaves(slopes))
    slope_gap = max(
      np.abs(mine - theirs[name]).max() / np.abs(theirs[name]).max()
      for name, mine in pytree.named_leaves(slope)
      if name in theirs
    )
    tokens = greedy(config, params, prompts, image_token)
    same = int((tokens == arrays["greedy"]).sum())
    gaps = max(hidden_gaps), logit_gap, slope_gap
    row = [family, *(f"{gap:.0e}" for gap in gaps), f"{same} of {tokens.size}"]
    record_property("gaps", row)
    assert max(gaps[:2]) < 1e-4
    assert slope_gap < 1e-3
    assert same == tokens.size

  return check
