"""GRPO on sums with SmolLM2-135M-Instruct, a real model, on two CPU cores.

README.md says how the folder `smollm2` is made of a package; then

  python -m jaxrl_mm.main --config=configs/smollm2_sums.py --workdir=runs/sums

Asked for the number between <answer> and </answer>, the published model never
writes the tags (0 of 32 greedy answers, 1 of 128 drawn ones), so nothing could
be rewarded. Five steps of cold start show it the form; GRPO is then
paid for the number alone. Only adapters are trained, which saves a third of the
arithmetic of an update, and the layers keep what the backward pass needs: a
batch of 2,000 tokens is small.

Of 128 held-out sums, answered greedily, 28.9 % are right after the cold start
and 52.3 % after GRPO (seed 0, two CPU cores, 8 minutes in all, jax 0.10.2,
2026-11-21). A cold start of 12 steps reaches 57.0 % by itself; GRPO with a
learning rate of 5e-4 behind it only shook that.
"""

import dataclasses

from jaxrl_mm.evaluate.accuracy import EvaluationConfig
from jaxrl_mm.experiment import DataConfig, Experiment, to_config
from jaxrl_mm.models import config as models
from jaxrl_mm.models.lora import LoraConfig
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train.loop import LoopConfig
from jaxrl_mm.train.policy import PolicyConfig
from jaxrl_mm.train.sft import SftConfig

ADAPTERS = ".*/lora_[ab]"


def get_config():
  """The experiment."""
  model = dataclasses.replace(
    models.smollm2_135m(), dtype="float32", remat="everything_saveable"
  )
  return to_config(
    Experiment(
      model=model,
      pretrained="smollm2",
      lora=LoraConfig(rank=16, alpha=32.0),
      data=DataConfig(
        demonstrations="sums/train",
        prompts="sums/train",
        prompt_tokens=56,
        completion_tokens=12,
      ),
      loop=LoopConfig(save_every=5),
      sft=SftConfig(
        steps=5,
        batch=16,
        micro_batch=16,
        optimizer=OptimizerConfig(
          learning_rate=1e-3, warmup_steps=2, trainable=ADAPTERS
        ),
      ),
      policy=PolicyConfig(
        steps=24,
        prompts_per_step=4,
        samples_per_prompt=8,
        micro_batch=32,
        algorithm={"name": "grpo"},
        weights={"answer": 1.0},
        optimizer=OptimizerConfig(
          learning_rate=2e-4, warmup_steps=2, trainable=ADAPTERS
        ),
      ),
      evaluation=EvaluationConfig(source="sums/test", size=128, batch=128),
    )
  )
