"""The weights of a run whose parts come from folders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import convert, sharding, weights
from jaxrl_mm.checkpoint import Checkpoints
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models.huggingface import families, load
from jaxrl_mm.models.huggingface.save import save_params
from jaxrl_mm.train.assemble import AssembleConfig

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_a_run_put_together_is_read_back(internvl_folder, tmp_path):
  mesh = sharding.make_mesh(1, -1)
  model = families.read_config(internvl_folder)
  published = load.load_params(internvl_folder, model, mesh)
  larger = jax.tree.map(lambda x: x + 1, published)
  reasoner, table = tmp_path / "hub", convert.entries(internvl_folder, model)
  save_params(larger, table, reasoner, like=internvl_folder, dtype="float32")
  # As configs/r1v2_38b.py names its parts.
  parts = AssembleConfig(
    vision=str(internvl_folder),
    substitute=str(internvl_folder),
    reasoner=str(reasoner),
  )
  e = Experiment(model=model, stages=("assemble", "sft"), assemble=parts)
  random = weights.initial(e, mesh)
  # What folders give would only take room.
  assert random.keys() == {"projector"}
  aligned = jax.tree.map(lambda x: jnp.full_like(x, 3), random)
  with Checkpoints(tmp_path / "assemble" / "align" / "checkpoints") as saved:
    saved.save(4, {"params": aligned}, {})
  found = weights.final(e, tmp_path, mesh)
  wanted = larger | aligned | {"vision": published["vision"]}
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
