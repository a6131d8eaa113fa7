"""R1-Reward on handwritten digits: a judge of two answers about a picture.

  make demo-reward
  python -m jaxrl_mm.main --config=configs/digits_r1_reward.py --workdir=DIR

Two answers to a question about digits are shown, of which mostly only the
picture tells which is right. The judge compares them with what it sees and
writes `<think>...response 1 is better</think><answer>1</answer>`. The stages
are those of the paper (https://arxiv.org/abs/2505.02835, section 4.3):

  sft         stands in for the published model that the paper starts from: it
              learns to compare, and to see from 100 labelled digits
  difficulty  that model is also the teacher; it tries each pair three times
  cold_start  imitates the teacher's right analyses
  policy      StableReinforce on those pairs, as many with answer 1 as with 2

README.md has the result.

`--config=configs/digits_r1_reward.py:NAME` is another algorithm or reward on
the same data:

  reinforce_plus_plus         no Pre-CLIP and no filter of advantages
  no_pre_clip, no_filter      StableReinforce without one of the two
  no_consistency              nothing for an analysis that leads to the answer
  shuffled_rewards            each row gets another's reward: must not learn
  hard_only                   pairs that took two tries or more, or were never
                              solved: the paper's selection
  stress                      a large policy lag: 16 updates a rollout at four
                              times the learning rate
  stress_reinforce_plus_plus  the same lag without Pre-CLIP and filter

Where the paper is silent or against its code: one sample a prompt and 256
prompts a rollout are the code's; the KL term is 0 as in the paper (the code has
1e-3); the filter is |z| <= 3 as in the paper (the code's window is shifted by
the mean reward). A question that was never solved has no trace, so the cold
start leaves it out. The teacher tries at temperature 1, for at the paper's 0 a
model of one's own repeats itself.

Against the paper the policy learns from all pairs. Its teacher is another
model; here it is the policy itself, and what it was wrong about is no fair
sample of what it sees: on the hard pairs alone the reward rises and the judge
gets worse. And where it leans to one answer, most hard pairs have the other, so
that to say this one always is rewarded; hence both answers equally often.
"""

import dataclasses

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate.judging import JudgingConfig
from jaxrl_mm.experiment import DataConfig, Experiment, MeshConfig, to_config
from jaxrl_mm.models import config as models
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train.difficulty import DifficultyConfig
from jaxrl_mm.train.policy import PolicyConfig
from jaxrl_mm.train.sft import SftConfig

REWARD = {"result": 1.0, "consistency": 0.5, "format": 0.5}
STABLE, PLAIN = {"name": "stable_reinforce"}, {"name": "reinforce_plus_plus"}


def optimizer(learning_rate: float, warmup_steps: int) -> OptimizerConfig:
  """Adam with a cosine, as in the paper's code."""
  return OptimizerConfig(
    learning_rate=learning_rate, warmup_steps=warmup_steps, schedule="cosine"
  )


LAG = {"updates_per_rollout": 16, "optimizer": optimizer(2e-3, 10)}
# What each variant changes of the policy stage.
VARIANTS = {
  "stable_reinforce": {},
  "reinforce_plus_plus": {"algorithm": PLAIN},
  # Bounds that nothing reaches.
  "no_pre_clip": {"algorithm": STABLE | {"ratio_bounds": (1e-30, 1e30)}},
  "no_filter": {"algorithm": STABLE | {"threshold": 1e9}},
  "no_consistency": {"weights": REWARD | {"consistency": 0.0}},
  "shuffled_rewards": {"shuffle_rewards": True},
  # The paper's selection, see `get_config`.
  "hard_only": {},
  "stress": LAG,
  "stress_reinforce_plus_plus": LAG | {"algorithm": PLAIN},
}


def supervised(steps: int, learning_rate: float) -> SftConfig:
  """Training on demonstrations, 64 an update."""
  return SftConfig(
    steps=steps,
    batch=64,
    micro_batch=32,
    optimizer=optimizer(learning_rate, 20),
  )


def get_config(variant: str = "stable_reinforce"):
  """The experiment, or one of its controls."""
  if variant not in VARIANTS:
    raise InputError(f"no variant '{variant}'; there are {', '.join(VARIANTS)}")
  fewest = 2 if variant == "hard_only" else 1
  policy = PolicyConfig(
    steps=120,
    prompts_per_step=256,
    samples_per_prompt=1,
    micro_batch=64,
    algorithm=STABLE,
    weights=REWARD,
    optimizer=optimizer(5e-4, 10),
  )
  return to_config(
    Experiment(
      model=models.digits(vocab=80),
      stages=("sft", "difficulty", "cold_start", "policy"),
      mesh=MeshConfig(cpu_devices=2),
      data=DataConfig(
        demonstrations="digit-pairs/train",
        labelled=100,
        prompts="digit-pairs/train",
        prompt_tokens=52,
        completion_tokens=48,
      ),
      sft=supervised(600, 2e-3),
      difficulty=DifficultyConfig(questions=8192, batch=256, fewest=fewest),
      cold_start=supervised(60, 5e-4),
      policy=dataclasses.replace(policy, **VARIANTS[variant]),
      judging=JudgingConfig(),
    )
  )
