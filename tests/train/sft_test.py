"""A few steps of the cold start on a mesh."""

import jax

from jaxrl_mm import inputs, metrics, sharding, weights
from jaxrl_mm.data import sources
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models import config as models
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train import sft
from jaxrl_mm.train.sft import SftConfig


def test_the_loss_falls_and_frozen_weights_stay(tmp_path, quick_compile):
  del quick_compile
  e = Experiment(model=models.digits())
  mesh = sharding.make_mesh(1, 2, 1, devices=jax.devices()[:2])
  setting = inputs.make_setting(e, mesh)
  config = SftConfig(
    steps=8,
    batch=16,
    micro_batch=8,
    optimizer=OptimizerConfig(learning_rate=3e-3, trainable="(?!vision).*"),
  )
  source = sources.Digits("train", size=100, seed=0, labelled=50)
  with jax.set_mesh(mesh):
    params = weights.initial(e, mesh)
    before = jax.device_get(params["vision"])
    trained = sft.run(setting, config, params, source, tmp_path / "sft")
  lines = metrics.read_lines(tmp_path / "sft" / "metrics.jsonl")
  assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
  same = jax.tree.map(
    lambda a, b: bool((a == b).all()), before, trained["vision"]
  )
  assert all(jax.tree.leaves(same))
