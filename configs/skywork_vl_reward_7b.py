"""Skywork-VL-Reward-7B at its own size: a reward model, on a v5p-32 slice.

  launch/tpu_pod.sh configs/skywork_vl_reward_7b.py --type v5p-32 ...
  python -m jaxrl_mm.main --config=configs/skywork_vl_reward_7b.py --workdir=DIR

`checkpoints/Qwen2.5-VL-7B-Instruct` is Qwen/Qwen2.5-VL-7B-Instruct as it is on
the hub; Skywork/Skywork-VL-Reward-7B is what the paper made of it. The data
are JSON lines, `data/questions.jsonl` and `data/held_out.jsonl`. The 16 chips
of the slice hold the model twice, as the one that answers and with a head as
the one that is trained, and Adam, all in float32: 8.3 GB each at most.

What the paper (https://arxiv.org/abs/2505.07263) says and does not say:

  pairs        The paper's 190,000 are of published sets, of which those with
               near ties were dropped, and 50,000 of its own making: sampled
               answers of reasoning questions, right against wrong. The stage
               makes all its pairs in the second way.
  head         A linear map of the last hidden state of the answer.
  two stages   The second adds pairs that the model of the first finds hard,
               which the paper has written anew by GPT-4o.
  rate         1e-5, then 1e-6; AdamW. The schedule is not published: constant.
  frozen       The vision tower.
  batch        256. A draft of the paper says 1, its last version nothing, and 1
               would leave 15 chips idle.
  steps        2 epochs of 65,536 pairs, about as many as 100,000 questions
               give, in the first stage.
  pictures     At most 1,280 image tokens, the processor's usual limit.
  micro_tokens A device takes up to eight pairs at once, each prompt once; two
               of the longest have 12,288 tokens.
  text         The paper's second stage adds questions without pictures; records
               without "image" are just that.
"""

from jaxrl_mm.evaluate.accuracy import EvaluationConfig
from jaxrl_mm.experiment import DataConfig, Experiment, MeshConfig, to_config
from jaxrl_mm.models import config as models
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train.collect import CollectConfig
from jaxrl_mm.train.reward_model import RewardModelConfig


def get_config():
  """The experiment."""
  return to_config(
    Experiment(
      model=models.qwen2_5_vl_7b(),
      pretrained="checkpoints/Qwen2.5-VL-7B-Instruct",
      stages=("reward_model",),
      mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
      data=DataConfig(
        prompts="data/questions.jsonl",
        prompt_tokens=2048,
        completion_tokens=2048,
      ),
      reward_model=RewardModelConfig(
        collect=CollectConfig(
          prompts=98_304,
          prompts_per_step=128,
          samples_per_prompt=8,
          micro_batch=8,
          micro_tokens=2048 + 8 * 2048,
        ),
        steps=512,
        batch=256,
        micro_batch=8,
        micro_tokens=16_384,
        second_rate=0.1,
        optimizer=OptimizerConfig(
          learning_rate=1e-5, trainable="(?!vision/).*"
        ),
      ),
      evaluation=EvaluationConfig(
        source="data/held_out.jsonl", size=1024, batch=128
      ),
    )
  )
