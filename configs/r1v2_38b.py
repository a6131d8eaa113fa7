"""Skywork R1V2-38B at its own size: all stages, on a v5p-256 slice.

  launch/tpu_pod.sh configs/r1v2_38b.py --type v5p-256 ...
  python -m jaxrl_mm.main --config=configs/r1v2_38b.py --workdir=DIR

The parts are looked for in `checkpoints/`, as they are on the hub:
OpenGVLab/InternViT-6B-448px-V2_5, Qwen/Qwen2.5-32B-Instruct and Qwen/QwQ-32B,
and `checkpoints/tokenizer`, QwQ's with the tokens `<img>`, `<IMG_CONTEXT>` and
`</img>` added; their ids are asked of it and stand nowhere. The data are JSON
lines (see README.md), `data/<name>.jsonl`. Of the 128 chips, 4x4x8,
eight share the rows of a batch shard (`mesh.tensor`).

The paper (https://arxiv.org/abs/2504.16656) gives the order of the stages, the
losses and what is frozen, and almost no number. What was chosen, and why:

  assemble      The projector is aligned with Qwen2.5-32B-Instruct and QwQ then
                takes its place, as the R1V report describes; R1V2 says only
                that it connects a reasoner. 2e-4 and 512 examples an update
                are R1V's first adapter stage.
  sft           The cold start. 4e-5, R1V's later stages; projector alone,
                so that QwQ keeps what it can.
  reward_model  The policy's own backbone with a head: it reads the tokens and
                the pictures that the policy reads. The paper's is Skywork-VL
                Reward, on Qwen2.5-VL-7B; another tokenizer and another cut of
                pictures would have to travel with every rollout. Tower frozen,
                1e-5 and then 1e-6 are Skywork-VL Reward's.
  preference    Weights 0.8, 0.2, 1.0 and beta 0.1 are InternVL's, whose loss
                it is; 1e-6 is its rate for 38B. A pair is kept from a score gap
                of 10: of the thresholds 7, 10 and 15 the paper tried, that of
                its best MMMU; that its unit is the gap of the scores is our
                reading. Two rounds; the paper says "iterative".
  policy        1e-6, 8 samples, temperature 1 are R1V's. Clip 0.2 is GRPO's;
                no KL term, for equation 8 has none. The buffer holds as
                many rows as four batches have; the fewer rows of a batch teach
                something, the further back it reaches (`max_age` ends it). Its
                rows have 13 tiles of pixels each, 32 GB in all, which lie on
                the chips (2 GB each) and in every checkpoint. The
                learned score counts 1 where it reaches a threshold: raw scores,
                -15 to 8, would drown rules of 0 and 1.
                The pool is the paper's filter before training.
  trainable     Projector alone after the reward model too: the paper's table 4
                finds it best, though its text also speaks of more.
  thresholds    Both stay where they are. To let them follow a hallucination
                rate (`band`) the records must name the `facts` of their
                pictures; published ones do not. POPE and HallusionBench are
                asked of the result instead (`jaxrl_mm.evaluate.run`).
  lengths       8,192 tokens of prompt hold 13 tiles of 256 and a question;
                8,192 of completion are R1V's.
  micro_tokens  A device takes up to a group at once, its prompt once: there is
                room for four of the longest answers. Elsewhere as many rows as
                fit the room of two of the longest.
  save_every    A policy step takes three minutes and more; a slice that goes
                without a warning in time takes a quarter of an hour with it.
"""

from jaxrl_mm.evaluate.accuracy import EvaluationConfig
from jaxrl_mm.experiment import DataConfig, Experiment, MeshConfig, to_config
from jaxrl_mm.models import config as models
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train.assemble import AssembleConfig
from jaxrl_mm.train.collect import CollectConfig
from jaxrl_mm.train.loop import LoopConfig
from jaxrl_mm.train.policy import LearnedConfig, PolicyConfig
from jaxrl_mm.train.preference import PreferenceConfig
from jaxrl_mm.train.reward_model import RewardModelConfig
from jaxrl_mm.train.sft import SftConfig

PROJECTOR = "projector/.*"
PROMPT, ANSWER = 8192, 8192
HALF_GROUP = PROMPT + 4 * ANSWER


def projector(learning_rate: float, **settings) -> OptimizerConfig:
  """Of the projector alone, everything else frozen."""
  return OptimizerConfig(
    learning_rate=learning_rate, trainable=PROJECTOR, **settings
  )


def get_config():
  """The experiment."""
  annealed = {"warmup_steps": 100, "schedule": "cosine", "weight_decay": 0.05}
  collect = CollectConfig(
    prompts=16384,
    prompts_per_step=128,
    samples_per_prompt=8,
    micro_batch=8,
    micro_tokens=HALF_GROUP,
  )
  return to_config(
    Experiment(
      model=models.r1v2_38b(),
      stages=("assemble", "sft", "reward_model", "preference", "policy"),
      mesh=MeshConfig(data=1, fsdp=-1, tensor=8),
      loop=LoopConfig(save_every=5),
      data=DataConfig(
        demonstrations="data/demonstrations.jsonl",
        prompts="data/prompts.jsonl",
        tokenizer="checkpoints/tokenizer",
        prompt_tokens=PROMPT,
        completion_tokens=ANSWER,
        max_tiles=12,
      ),
      assemble=AssembleConfig(
        vision="checkpoints/InternViT-6B-448px-V2_5",
        substitute="checkpoints/Qwen2.5-32B-Instruct",
        reasoner="checkpoints/QwQ-32B",
        align=SftConfig(
          steps=4000,
          batch=512,
          micro_batch=4,
          micro_tokens=2 * (PROMPT + ANSWER),
          optimizer=projector(2e-4, **annealed),
        ),
      ),
      sft=SftConfig(
        steps=400,
        batch=512,
        micro_batch=4,
        micro_tokens=2 * (PROMPT + ANSWER),
        optimizer=projector(4e-5, **annealed),
      ),
      reward_model=RewardModelConfig(
        collect=collect,
        steps=400,
        batch=256,
        micro_batch=3,
        micro_tokens=2 * (PROMPT + ANSWER),
        optimizer=OptimizerConfig(
          learning_rate=1e-5, trainable="(?!vision/).*"
        ),
      ),
      preference=PreferenceConfig(
        collect=collect,
        threshold=10.0,
        rounds=2,
        steps=200,
        batch=256,
        micro_batch=3,
        micro_tokens=2 * (PROMPT + ANSWER),
        optimizer=projector(1e-6, warmup_steps=10),
      ),
      policy=PolicyConfig(
        steps=500,
        prompts_per_step=128,
        samples_per_prompt=8,
        micro_batch=8,
        micro_tokens=HALF_GROUP,
        algorithm={"name": "r1v2", "capacity": 4096, "clip": 0.2},
        weights={"answer": 1.0, "format": 1.0},
        learned=LearnedConfig(weight=1.0, threshold=0.0),
        pool=65536,
        optimizer=projector(1e-6, warmup_steps=10),
        probe_every=50,
      ),
      evaluation=EvaluationConfig(
        source="data/held_out.jsonl", size=1024, batch=128, micro_batch=1
      ),
    )
  )
