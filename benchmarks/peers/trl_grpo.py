"""Times a GRPO step of TRL; spoken to by benchmarks/train.py.

The first line of stdin is the model's size; for each further line, a case, one
line with the seconds of a step and the most memory so far is printed. Needs
trl, torch and transformers. The trainer is TRL's with its own generation, in
float32, and recomputes nothing: what is fastest on a CPU.
"""

import json
import os
import resource
import sys
import tempfile
import time

# Only answers go to the parent; what else is printed goes to stderr.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import tokenizers  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from PIL import Image  # noqa: E402
from tokenizers import models, pre_tokenizers  # noqa: E402
from transformers_generate import FIRST_WORD, SIDE, build  # noqa: E402

SPECIAL = (
  "<|endoftext|>",
  "<unk>",
  "<|vision_start|>",
  "<|image_pad|>",
  "<|vision_end|>",
)
TEMPLATE = """{% for part in messages[0].content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% else %}{{ part.text }}{% endif %}{% endfor %}"""


def build_tokenizer(vocab):
  """Words w5, w6, ...; the end token is none that the model can draw."""
  words = [f"w{i}" for i in range(FIRST_WORD, vocab)]
  beyond = ["<|video_pad|>", "<|im_end|>"]
  known = {word: i for i, word in enumerate([*SPECIAL, *words, *beyond])}
  inner = tokenizers.Tokenizer(models.WordLevel(known, unk_token="<unk>"))
  inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  inner.add_special_tokens([*SPECIAL, *beyond])
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner,
    pad_token=SPECIAL[0],
    unk_token=SPECIAL[1],
    eos_token=beyond[1],
    padding_side="left",
    chat_template=TEMPLATE,
  )


def build_processor(tokenizer):
  """With pictures of SIDE x SIDE patches."""
  pixels = (14 * SIDE) ** 2
  sizes = {"min_pixels": pixels, "max_pixels": pixels}
  return transformers.Qwen2_5_VLProcessor(
    transformers.Qwen2VLImageProcessor(**sizes),
    tokenizer,
    transformers.Qwen2VLVideoProcessor(),
    chat_template=TEMPLATE,
  )


def prompts(case, vocab, steps=64):
  """A data set of so many steps; the trainer goes around in it."""
  rng, rows = np.random.default_rng(0), case["prompts"] * steps
  pictured = (SIDE // 2) ** 2 + 2 if case["picture"] else 0
  words = case["prompt_tokens"] - pictured
  drawn = rng.integers(FIRST_WORD, vocab, (rows, words))
  texts = [" ".join(f"w{i}" for i in row) for row in drawn]
  if not case["picture"]:
    return datasets.Dataset.from_dict({"prompt": texts})
  draw = lambda: rng.integers(256, size=(14 * SIDE, 14 * SIDE, 3))
  return datasets.Dataset.from_dict(
    {
      "prompt": [[{"role": "user", "content": text}] for text in texts],
      "image": [Image.fromarray(draw().astype(np.uint8)) for _ in range(rows)],
    }
  )


class Turns(transformers.TrainerCallback):
  """Tells what a step took, and waits until the next one is asked for."""

  def __init__(self, line):
    self.line, self.asked, self.start = line, line, time.perf_counter()

  def on_step_end(self, args, state, control, **_):
    seconds = time.perf_counter() - self.start
    answer(seconds)
    self.asked = sys.stdin.readline()
    control.should_training_stop = self.asked != self.line
    self.start = time.perf_counter()


def answer(seconds):
  peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  told = {"seconds": seconds, "peak_bytes": peak}
  print(json.dumps(told), file=ANSWERS, flush=True)


def reward(completions, **_):
  return np.random.default_rng(0).random(len(completions)).tolist()


def train(line, size, tokenizer, folder):
  """Steps of one case, until another is asked for; gives that line back."""
  case, turns = json.loads(line), Turns(line)
  seen = case["picture"]
  trl.GRPOTrainer(
    build(size)[seen],
    reward,
    args=trl.GRPOConfig(
      output_dir=folder,
      per_device_train_batch_size=case["prompts"] * case["samples"],
      num_generations=case["samples"],
      max_completion_length=case["tokens"],
      gradient_accumulation_steps=1,
      max_steps=1_000_000,
      beta=0.0,
      loss_type="grpo",
      bf16=False,
      gradient_checkpointing=False,
      logging_strategy="no",
      save_strategy="no",
      report_to=[],
      disable_tqdm=True,
      dataloader_pin_memory=False,
    ),
    train_dataset=prompts(case, size["decoder"]["vocab"]),
    processing_class=build_processor(tokenizer) if seen else tokenizer,
    callbacks=[turns],
  ).train()
  return turns.asked


def main():
  size = json.loads(sys.stdin.readline())
  tokenizer = build_tokenizer(size["decoder"]["vocab"])
  version = f"trl {trl.__version__}, transformers {transformers.__version__}"
  print(json.dumps(version), file=ANSWERS, flush=True)
  line = sys.stdin.readline()
  with tempfile.TemporaryDirectory() as folder:
    while line:
      line = train(line, size, tokenizer, folder)


if __name__ == "__main__":
  main()
