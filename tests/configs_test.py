"""Every file of configs/ describes a run that could start."""

import math
import runpy
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxrl_mm import experiment, inputs, preflight, run
from jaxrl_mm.models import lora, vlm
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.train.collect import scoring

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
# The devices each is meant for.
DEVICES = {
  "digits_r1_reward": 2,
  "digits_r1v2": 2,
  "r1_reward_7b": 16,
  "r1v2_38b": 128,
  "skywork_vl_reward_7b": 16,
  "smollm2_sums": 1,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_divides_and_places_every_weight(path):
  e = experiment.from_config(runpy.run_path(str(path))["get_config"]())
  sizes = [e.mesh.data, e.mesh.fsdp, e.mesh.sequence, e.mesh.tensor]
  rest = DEVICES[path.stem] // -math.prod(sizes)
  sizes = [rest if n == -1 else n for n in sizes]
  assert math.prod(sizes) == DEVICES[path.stem]
  run.check_stages(e)
  preflight.check_config(e, sizes[0] * sizes[1])

  def params(key):
    whole = vlm.init(scoring(e.model), key)
    return lora.attach(e.lora, whole, key) if e.lora else whole

  shapes = jax.eval_shape(params, jax.random.key(0))
  names = ("data", "fsdp", "sequence", "tensor")
  mesh = AbstractMesh(tuple(sizes), names, axis_types=(AxisType.Auto,) * 4)
  shardings = param_shardings(mesh, shapes)
  jax.tree.map(lambda s, x: s.shard_shape(x.shape), shardings, shapes)
  preflight.check_optimizers(e, shapes)
  pictures = inputs.make_layout(e).pictures
  assert (pictures is None) == (e.model.vision is None)
