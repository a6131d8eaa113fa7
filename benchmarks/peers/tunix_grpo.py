"""Times a GRPO step of google-tunix; spoken to by benchmarks/train.py.

The first line of stdin is the model's size; for each further line, a case, one
line with the seconds of a step and the most memory so far is printed. Needs
google-tunix. The learner is tunix's with its own rollouts, in float32, and
recomputes nothing.
"""

import importlib.metadata
import json
import os
import resource
import sys
import time

# Only answers go to the parent; what else is printed goes to stderr.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402
from tunix.rl import rl_cluster  # noqa: E402
from tunix.rl.grpo import grpo_learner  # noqa: E402
from tunix.rl.rollout.base_rollout import RolloutConfig  # noqa: E402
from tunix_generate import Words, build  # noqa: E402


def answer(seconds):
  peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  told = {"seconds": seconds, "peak_bytes": peak}
  print(json.dumps(told), file=ANSWERS, flush=True)


class Turns:
  """Batches of one case; the time between two of them is a step."""

  def __init__(self, line, network, vocab):
    self.asked = line
    self._line, self._network, self._vocab = line, network, vocab

  def __iter__(self):
    case, rng = json.loads(self._line), np.random.default_rng(0)
    shape = case["prompts"], case["prompt_tokens"]
    while self.asked == self._line:
      start = time.perf_counter()
      words = rng.integers(4, self._vocab, shape)
      # An array: of a list each text would be repeated by itself.
      yield {"prompts": np.array([" ".join(map(str, row)) for row in words])}
      jax.block_until_ready(nnx.state(self._network))
      answer(time.perf_counter() - start)
      self.asked = sys.stdin.readline()


def reward(prompts, completions, **_):
  return np.random.default_rng(0).random(len(completions)).tolist()


def train(line, size):
  """Steps of one case, until another is asked for; gives that line back."""
  case, network = json.loads(line), build(size)
  automatic = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=automatic)
  roles = rl_cluster.Role
  config = rl_cluster.ClusterConfig(
    role_to_mesh=dict.fromkeys(
      (roles.ACTOR, roles.REFERENCE, roles.ROLLOUT), mesh
    ),
    training_config=rl_cluster.RLTrainingConfig(
      actor_optimizer=optax.adamw(1e-6),
      eval_every_n_steps=1_000_000,
      max_steps=1_000_000,
      mini_batch_size=case["prompts"],
      train_micro_batch_size=case["prompts"],
    ),
    rollout_config=RolloutConfig(
      max_tokens_to_generate=case["tokens"],
      max_prompt_length=case["prompt_tokens"],
      kv_cache_size=case["prompt_tokens"] + case["tokens"],
      temperature=1.0,
      eos_tokens=[-1],
    ),
  )
  learner = grpo_learner.GRPOLearner(
    rl_cluster.RLCluster(
      actor=network, tokenizer=Words(), cluster_config=config
    ),
    grpo_learner.GRPOConfig(num_generations=case["samples"], beta=0.0),
    reward,
  )
  turns = Turns(line, network, size["vocab"])
  learner.train(turns)
  return turns.asked


def main():
  size = json.loads(sys.stdin.readline())["decoder"]
  version = importlib.metadata.version("google-tunix")
  print(json.dumps(f"google-tunix {version}"), file=ANSWERS, flush=True)
  line = sys.stdin.readline()
  while line:
    line = train(line, size)


if __name__ == "__main__":
  main()
