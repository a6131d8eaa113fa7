"""R1V2 on handwritten digits: cold start, then GRPO with the sample buffer.

  make demo
  python -m jaxrl_mm.main --config=configs/digits_r1v2.py --workdir=runs/demo

The cold start learns from demonstrations of 50 labelled digits, to its
plateau or near it. Reinforcement learning then sees all digits of the training
split; only the reward knows the answers. README.md has the result, and that
of the controls, each `--config=configs/digits_r1v2.py:NAME`:

  longer_cold_start  the compute of the policy stage spent on more cold start
  shuffled_rewards   each row gets the reward of another: must not learn
  all_labels         supervised on every digit of the split: the ceiling

Where the paper is silent: clip 0.2 and group size 8 are the values of its
predecessor and of GRPO; the buffer holds four batches, so that a replayed row
is a few updates old and the clipped ratio still describes it.
"""

import dataclasses

from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import Experiment, MeshConfig, to_config
from jaxrl_mm.models import config as models
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train.assemble import AssembleConfig
from jaxrl_mm.train.collect import CollectConfig
from jaxrl_mm.train.policy import LearnedConfig, PolicyConfig
from jaxrl_mm.train.preference import PreferenceConfig
from jaxrl_mm.train.reward_model import RewardModelConfig
from jaxrl_mm.train.sft import SftConfig

# An update of the policy stage costs about as much as five of the cold start:
# 256 rows sampled and trained against 64 rows trained.
SFT_STEPS, POLICY_STEPS, SFT_STEPS_PER_POLICY_STEP = 400, 600, 5


def supervised(
  steps: int, learning_rate: float, trainable: str = ".*"
) -> SftConfig:
  """Training on demonstrations, 64 an update."""
  optimizer = OptimizerConfig(
    learning_rate=learning_rate,
    warmup_steps=20,
    schedule="cosine",
    trainable=trainable,
  )
  return SftConfig(steps=steps, batch=64, micro_batch=32, optimizer=optimizer)


def preferred(learning_rate: float, trainable: str = ".*") -> OptimizerConfig:
  """The optimizer of the stages that learn from pairs."""
  return OptimizerConfig(
    learning_rate=learning_rate, warmup_steps=5, trainable=trainable
  )


def get_config(variant: str = "r1v2"):
  """The experiment, or one of its controls."""
  collect = CollectConfig(
    prompts=768, prompts_per_step=32, samples_per_prompt=8
  )
  demo = Experiment(
    model=models.digits(),
    stages=("assemble", "sft", "reward_model", "preference", "policy"),
    mesh=MeshConfig(cpu_devices=2),
    assemble=AssembleConfig(
      text=supervised(200, 2e-3, "(embedder|decoder)/.*"),
      align=supervised(100, 2e-3, "projector/.*"),
    ),
    sft=supervised(SFT_STEPS, 1e-3),
    reward_model=RewardModelConfig(
      collect=collect,
      steps=60,
      batch=64,
      micro_batch=32,
      optimizer=preferred(5e-4, "(?!vision/).*"),
    ),
    preference=PreferenceConfig(
      collect=collect,
      threshold=1.0,
      rounds=2,
      steps=30,
      batch=64,
      micro_batch=32,
      optimizer=preferred(2e-4),
    ),
    policy=PolicyConfig(
      steps=POLICY_STEPS,
      prompts_per_step=32,
      samples_per_prompt=8,
      micro_batch=32,
      algorithm={"name": "r1v2", "capacity": 1024, "clip": 0.2},
      weights={"answer": 1.0, "format": 0.1, "hallucination": 0.0},
      learned=LearnedConfig(weight=0.2, threshold=0.0),
      optimizer=OptimizerConfig(
        learning_rate=5e-4, warmup_steps=10, schedule="cosine"
      ),
      probe_every=100,
    ),
  )
  more = SFT_STEPS + SFT_STEPS_PER_POLICY_STEP * POLICY_STEPS
  longer = dataclasses.replace(
    demo, stages=("sft",), sft=dataclasses.replace(demo.sft, steps=more)
  )
  variants = {
    "r1v2": demo,
    "longer_cold_start": longer,
    "shuffled_rewards": dataclasses.replace(
      demo, policy=dataclasses.replace(demo.policy, shuffle_rewards=True)
    ),
    "all_labels": dataclasses.replace(
      longer, data=dataclasses.replace(demo.data, labelled=0)
    ),
  }
  if variant not in variants:
    raise InputError(f"no variant '{variant}'; there are {', '.join(variants)}")
  return to_config(variants[variant])
