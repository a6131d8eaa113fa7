"""Times the Sampler of google-tunix; spoken to by benchmarks/rollout.py.

The first line of stdin is the model's size; for each further line, a case, one
line with its seconds is printed. Needs google-tunix. Its log-probs are asked
for, since a trainer needs them and ours always come.
"""

import importlib.metadata
import json
import sys
import time

import numpy as np
from flax import nnx
from tunix.generate import sampler
from tunix.models.qwen2 import model


class Words:
  """A tokenizer for which a text is a list of numbers."""

  def encode(self, text):
    return [int(x) for x in text.split()]

  def decode(self, ids):
    return " ".join(map(str, ids))

  def bos_id(self):
    return 0

  def eos_id(self):
    return 1

  def pad_id(self):
    return 2


def build(size):
  config = model.ModelConfig(
    num_layers=size["layers"],
    vocab_size=size["vocab"],
    embed_dim=size["width"],
    hidden_dim=size["mlp"],
    num_heads=size["heads"],
    head_dim=size["head_dim"],
    num_kv_heads=size["kv_heads"],
    rope_theta=size["rope_theta"],
    norm_eps=size["norm_eps"],
    use_tied_embedding=size["tied"],
  )
  return model.Qwen2(config, rngs=nnx.Rngs(0))


def main():
  size = json.loads(sys.stdin.readline())["decoder"]
  network, draw = build(size), {}
  version = importlib.metadata.version("google-tunix")
  print(json.dumps(f"google-tunix {version}"), flush=True)
  rng = np.random.default_rng(0)
  for number, line in enumerate(sys.stdin):
    case = json.loads(line)
    room = case["prompt_tokens"] + case["tokens"]
    if room not in draw:
      cache = sampler.CacheConfig(
        room, size["layers"], size["kv_heads"], size["head_dim"]
      )
      draw[room] = sampler.Sampler(network, Words(), cache)
    words = rng.integers(
      4, size["vocab"], (case["prompts"], case["prompt_tokens"])
    )
    texts = [" ".join(map(str, row)) for row in words]
    start = time.perf_counter()
    draw[room](
      [text for text in texts for _ in range(case["samples"])],
      case["tokens"],
      max_prompt_length=case["prompt_tokens"],
      eos_tokens=[-1],
      temperature=1.0,
      top_p=1.0,
      seed=number,
      return_logprobs=True,
    )
    print(json.dumps(time.perf_counter() - start), flush=True)


if __name__ == "__main__":
  main()
