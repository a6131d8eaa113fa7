"""R1V2 on handwritten digits, whole: five stages at laptop size.

  make demo
  python -m jaxrl_mm.main --config=configs/digits_r1v2.py --workdir=runs/demo

assemble, sft, reward_model, preference, policy, as in configs/r1v2_38b.py. The
demonstrations are of 50 labelled digits; the stages after them see all digits
of the training split, whose answers only the rules know. README.md has the
result, and that of the controls, each `--config=configs/digits_r1v2.py:NAME`:

  longer_cold_start  the compute of the later stages spent on more cold start
  shuffled_rewards   each row gets the reward of another: must not learn
  all_labels         supervised on every digit of the split: the ceiling

Where the paper is silent, and why it is so here:

  assemble      No language model comes with the digits, so two are trained on
                the same questions with the digits written out: the substitute,
                and the reasoner from it on other questions.
  trainable     All weights, where the paper trains the projector alone: that
                is enough where tower and reasoner have been trained before,
                and these start from nothing.
  reward_model  The policy's own backbone, tower frozen as in Skywork-VL Reward.
                Pairs are right against wrong by the rules.
  preference    A pair is kept where the reward model prefers the right answer;
                two rounds. A gap of 0.5 kept half as many pairs and took six
                points from the cold start instead of adding four (seed 12).
  policy        Clip 0.2 and group size 8 are the values of its predecessor and
                of GRPO; no KL term, as in equation 8. The buffer holds as many
                rows as four batches have; as one row in five teaches something,
                it reaches about twenty updates back. The learned score counts
                0.2 where it is positive: a raw one would drown rules of 0, 1.
                No pool: every question is drawn anew and never seen twice.
  thresholds    Hallucination, the share of named digits that are not there, is
                watched with weight 0; the thresholds stay. What they do when
                they follow it is in benchmarks/ablations.py.
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

SFT_STEPS, REWARD_STEPS, MPO_STEPS, POLICY_STEPS = 200, 30, 15, 400
# What the later stages cost in updates of the cold start, of 64 rows. One of
# the policy stage samples and trains 256 rows; one of pairs trains 128; and the
# four times that pairs are collected, 8,192 rows are sampled and scored.
PER_POLICY_STEP, PER_PAIR_STEP, PER_COLLECTION = 5, 2, 60


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
    prompts=1024, prompts_per_step=32, samples_per_prompt=8
  )
  demo = Experiment(
    model=models.digits(),
    stages=("assemble", "sft", "reward_model", "preference", "policy"),
    mesh=MeshConfig(cpu_devices=2),
    assemble=AssembleConfig(
      text=supervised(100, 2e-3, "(embedder|decoder)/.*"),
      align=supervised(100, 2e-3, "projector/.*"),
    ),
    sft=supervised(SFT_STEPS, 1e-3),
    reward_model=RewardModelConfig(
      collect=collect,
      steps=REWARD_STEPS,
      batch=64,
      micro_batch=32,
      optimizer=preferred(5e-4, "(?!vision/).*"),
    ),
    preference=PreferenceConfig(
      collect=collect,
      threshold=0.0,
      rounds=2,
      steps=MPO_STEPS,
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
  pairs = 2 * PER_PAIR_STEP * (REWARD_STEPS + MPO_STEPS) + 4 * PER_COLLECTION
  more = SFT_STEPS + pairs + PER_POLICY_STEP * POLICY_STEPS
  longer = dataclasses.replace(
    demo,
    stages=("assemble", "sft"),
    sft=dataclasses.replace(demo.sft, steps=more),
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
