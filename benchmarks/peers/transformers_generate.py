"""Times `generate` of transformers; spoken to by benchmarks/rollout.py.

The first line of stdin is the model's size; for each further line, a case, one
line with its seconds is printed. Needs torch and transformers.
"""

import importlib.util
import json
import sys
import time

# A torchvision that does not fit torch breaks the import; text needs none.
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
  None if name.split(".")[0] == "torchvision" else find_spec(name, *rest)
)

import torch  # noqa: E402
import transformers  # noqa: E402


def build(size):
  config = transformers.Qwen2Config(
    vocab_size=size["vocab"],
    hidden_size=size["width"],
    intermediate_size=size["mlp"],
    num_hidden_layers=size["layers"],
    num_attention_heads=size["heads"],
    num_key_value_heads=size["kv_heads"],
    tie_word_embeddings=size["tied"],
  )
  return transformers.Qwen2ForCausalLM(config).eval()


def main():
  torch.manual_seed(0)
  model = build(json.loads(sys.stdin.readline()))
  versions = f"transformers {transformers.__version__}, torch "
  print(json.dumps(versions + torch.__version__), flush=True)
  for line in sys.stdin:
    case = json.loads(line)
    shape = case["prompts"], case["prompt_tokens"]
    tokens = torch.randint(4, model.config.vocab_size, shape)
    start = time.perf_counter()
    with torch.inference_mode():
      model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=True,
        top_k=0,
        num_return_sequences=case["samples"],
        max_new_tokens=case["tokens"],
        eos_token_id=None,
        pad_token_id=0,
      )
    print(json.dumps(time.perf_counter() - start), flush=True)


if __name__ == "__main__":
  main()
