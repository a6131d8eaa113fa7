"""Times `generate` of transformers; spoken to by benchmarks/rollout.py.

The first line of stdin is the model's size; for each further line, a case, one
line with its seconds is printed. Needs torch and transformers.
"""

import json
import sys
import time

import torch

# A torchvision built for another torch cannot load its compiled operators;
# it wants to know these two, and nothing here needs either.
if not hasattr(torch.ops.torchvision, "nms"):
  operators = torch.library.Library("torchvision", "DEF")
  for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor boxes, Tensor scores, float t) -> Tensor")

import transformers  # noqa: E402

SIDE = 8  # Patches along a side of a picture of 112 pixels.
START, IMAGE, END, FIRST_WORD = 2, 3, 4, 5


def text_config(size):
  d = size["decoder"]
  return dict(
    vocab_size=d["vocab"],
    hidden_size=d["width"],
    intermediate_size=d["mlp"],
    num_hidden_layers=d["layers"],
    num_attention_heads=d["heads"],
    num_key_value_heads=d["kv_heads"],
    tie_word_embeddings=d["tied"],
  )


def build(size):
  """The decoder alone for text, which is faster, and the whole for pictures."""
  v, d, text = size["vision"], size["decoder"], text_config(size)
  rope = {"rope_type": "default", "rope_theta": d["rope_theta"]}
  config = transformers.Qwen2_5_VLConfig(
    vision_config=dict(
      depth=v["layers"],
      hidden_size=v["width"],
      intermediate_size=v["mlp"],
      num_heads=v["heads"],
      out_hidden_size=d["width"],
      fullatt_block_indexes=list(v["full_layers"]),
    ),
    text_config=text
    | {"rope_parameters": rope | {"mrope_section": d["rope_sections"]}},
    image_token_id=IMAGE,
    vision_start_token_id=START,
    vision_end_token_id=END,
    tie_word_embeddings=d["tied"],
  )
  return {
    False: transformers.Qwen2ForCausalLM(
      transformers.Qwen2Config(**text)
    ).eval(),
    True: transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
  }


def prompts(case, vocab):
  """What `generate` is given, made outside of the clock."""
  shape = case["prompts"], case["prompt_tokens"]
  tokens = torch.randint(FIRST_WORD, vocab, shape)
  given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
  if case["picture"]:
    count = (SIDE // 2) ** 2
    ids = torch.tensor([START, *[IMAGE] * count, END])
    tokens[:, : count + 2] = ids
    grid = torch.tensor([[1, SIDE, SIDE]] * shape[0])
    given |= {
      "pixel_values": torch.randn(shape[0] * SIDE**2, 3 * 2 * 14 * 14),
      "image_grid_thw": grid,
      "mm_token_type_ids": (tokens == IMAGE).int(),
    }
  return given


def main():
  torch.manual_seed(0)
  size = json.loads(sys.stdin.readline())
  models = build(size)
  versions = f"transformers {transformers.__version__}, torch "
  print(json.dumps(versions + torch.__version__), flush=True)
  for line in sys.stdin:
    case = json.loads(line)
    given = prompts(case, size["decoder"]["vocab"])
    start = time.perf_counter()
    with torch.inference_mode():
      models[case["picture"]].generate(
        **given,
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
