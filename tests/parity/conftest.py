"""Tests beside torch itself, for machines that have it; not run by default.

pip install torch torchvision peft gguf
python -m pytest -n 0 tests/parity/internvl_parity.py
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxrl_mm import pytree, sharding
from jaxrl_mm.models.huggingface import families, load

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))


@pytest.fixture(scope="session")
def from_torch(tmp_path_factory):
  """`torch model -> (config, params, gradients)`, by way of its own files."""

  def read(model):
    folder = tmp_path_factory.mktemp("weights")
    model.save_pretrained(folder)
    config = families.read_config(folder)
    config = dataclasses.replace(config, dtype="float32")
    slopes = tmp_path_factory.mktemp("gradients")
    model.config.save_pretrained(slopes)
    named = {n: x.grad.numpy() for n, x in model.named_parameters()}
    save_file(named, slopes / "model.safetensors")
    mesh = sharding.make_mesh()
    take = lambda at: jax.device_get(load.load_params(at, config, mesh))
    return config, take(folder), take(slopes)

  return read


@pytest.fixture(scope="session")
def compare(score, greedy, right_padded):
  """Everything of one model; returns and prints the largest gaps."""

  def check(config, params, slopes, arrays, prompts, image_token):
    measure = score(config, image_token)
    gaps = {}
    for side, rows in (("left", prompts), ("right", right_padded(prompts))):
      (_, (hidden, logits)), slope = measure(params, rows)
      real = np.asarray(rows.mask)
      gap = np.asarray(hidden) - arrays[f"{side}/hidden"]
      gaps[f"{side} hidden"] = np.abs(gap[real]).max()
    gaps["logits"] = np.abs(np.asarray(logits) - arrays["logits"])[real].max()
    gaps["gradients"] = max(
      np.abs(mine - other).max() / np.abs(other).max()
      for (_, mine), (_, other) in zip(
        pytree.named_leaves(slope), pytree.named_leaves(slopes)
      )
    )
    print({name: f"{gap:.1e}" for name, gap in gaps.items()})
    assert gaps.pop("gradients") < 1e-3
    assert max(gaps.values()) < 1e-4
    tokens = greedy(config, params, prompts, image_token)
    np.testing.assert_array_equal(tokens, arrays["greedy"])

  return check
