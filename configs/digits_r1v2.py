"""R1V2 on handwritten digits, laptop size."""

from jaxrl_mm.experiment import Experiment, MeshConfig, to_config
from jaxrl_mm.models import config as models
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train.policy import PolicyConfig
from jaxrl_mm.train.sft import SftConfig


def get_config(variant: str = "r1v2"):
  """The experiment, or one of its controls."""
  base = Experiment(
    model=models.digits(),
    mesh=MeshConfig(cpu_devices=2),
    sft=SftConfig(
      steps=600,
      batch=64,
      micro_batch=32,
      optimizer=OptimizerConfig(
        learning_rate=1e-3, warmup_steps=20, schedule="cosine"
      ),
    ),
    policy=PolicyConfig(
      steps=300,
      micro_batch=32,
      algorithm={"name": "r1v2", "capacity": 1024, "clip": 0.2},
      optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=10),
    ),
  )
  return to_config(base)
