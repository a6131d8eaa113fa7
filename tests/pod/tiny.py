"""All stages of the demo in a few steps, as a config: what a pod is tested on.

Variants: `whole`; `short`, without the reward model's stages; `sft` alone.
"""

import dataclasses

from configs import digits_r1v2
from jaxrl_mm import experiment
from jaxrl_mm.experiment import MeshConfig, to_config
from jaxrl_mm.train.loop import LoopConfig


def get_config(variant: str = "whole"):
  """The experiment; random weights answer nothing, so the pairs are noise."""
  e = experiment.from_config(digits_r1v2.get_config())
  small = lambda config, **settings: dataclasses.replace(config, **settings)
  few = {"steps": 4, "batch": 16, "micro_batch": 1}
  collect = small(
    e.preference.collect, prompts=64, prompts_per_step=16, samples_per_prompt=4
  )
  stages = ("sft", "reward_model", "preference", "policy")
  whole = small(
    e,
    stages=stages,
    mesh=MeshConfig(data=2, fsdp=2, tensor=2),
    loop=LoopConfig(save_every=2),
    sft=small(e.sft, steps=60, batch=16, micro_batch=2),
    reward_model=small(e.reward_model, collect=collect, **few),
    preference=small(
      e.preference, collect=collect, rounds=2, threshold=-100.0, **few
    ),
    policy=small(
      e.policy,
      steps=6,
      prompts_per_step=8,
      samples_per_prompt=4,
      micro_batch=4,
      probe_every=0,
      algorithm={"name": "r1v2", "capacity": 16, "clip": 0.2},
    ),
    evaluation=small(e.evaluation, size=16, batch=16),
  )
  if variant == "whole":
    return to_config(whole)
  if variant == "sft":
    few = small(whole.sft, steps=4)
    return to_config(small(whole, stages=("sft",), sft=few))
  # After so few steps no answer is right, but what they claim differs.
  weights = whole.policy.weights | {"hallucination": -1.0}
  policy = small(whole.policy, steps=4, learned=None, weights=weights)
  sft = small(whole.sft, steps=12)
  return to_config(
    small(whole, stages=("sft", "policy"), sft=sft, policy=policy)
  )
