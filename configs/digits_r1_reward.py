"""R1-Reward on handwritten digits."""

from jaxrl_mm.evaluate.judging import JudgingConfig
from jaxrl_mm.experiment import DataConfig, Experiment, MeshConfig, to_config
from jaxrl_mm.models import config as models
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train.difficulty import DifficultyConfig
from jaxrl_mm.train.policy import PolicyConfig
from jaxrl_mm.train.sft import SftConfig


def get_config():
  """The experiment."""
  pairs = "digit-pairs/train"
  return to_config(
    Experiment(
      model=models.digits(),
      stages=("sft", "difficulty", "cold_start", "policy"),
      mesh=MeshConfig(cpu_devices=2),
      data=DataConfig(
        demonstrations=pairs,
        prompts=pairs,
        prompt_tokens=60,
        completion_tokens=40,
      ),
      sft=SftConfig(
        steps=500,
        batch=64,
        micro_batch=32,
        optimizer=OptimizerConfig(
          learning_rate=2e-3, warmup_steps=20, schedule="cosine"
        ),
      ),
      difficulty=DifficultyConfig(questions=8192, batch=256),
      cold_start=SftConfig(
        steps=150,
        batch=64,
        micro_batch=32,
        optimizer=OptimizerConfig(
          learning_rate=1e-3, warmup_steps=10, schedule="cosine"
        ),
      ),
      policy=PolicyConfig(
        steps=200,
        prompts_per_step=256,
        samples_per_prompt=1,
        micro_batch=32,
        algorithm={"name": "stable_reinforce"},
        weights={"result": 1.0, "consistency": 0.5, "format": 0.5},
        optimizer=OptimizerConfig(
          learning_rate=5e-4, warmup_steps=10, schedule="cosine"
        ),
      ),
      judging=JudgingConfig(),
    )
  )
