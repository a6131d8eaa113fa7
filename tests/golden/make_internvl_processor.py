"""Makes internvl_processor.json and .npz: transformers' InternVL processor.

  pip install torch torchvision "transformers>=5,<6"
  python tests/golden/make_internvl_processor.py

Tiles of 16 pixels and four tokens a tile keep the files small. The tokenizer
is byte-level BPE over a few sentences, with the special tokens of InternVL3.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
  GotOcr2ImageProcessor,
  GotOcr2ImageProcessorPil,
  InternVLProcessor,
  InternVLVideoProcessor,
  PreTrainedTokenizerFast,
)

HERE = Path(__file__).parent
SIDE, TOKENS, TILES = 16, 4, 12
SIDES = (1, 30, 224, 300, 333, 448, 512, 640, 800, 896, 1080, 1344, 1920, 4000)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS = dict(
  size={"height": SIDE, "width": SIDE},
  image_mean=MEAN,
  image_std=STD,
  crop_to_patches=True,
  max_patches=TILES,
)
SPECIAL = {
  "start_image_token": "<img>",
  "end_image_token": "</img>",
  "context_image_token": "<IMG_CONTEXT>",
  "video_token": "<video>",
}
# As the checkpoints with this processor carry it.
TEMPLATE = (
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
  "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
  "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
  "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}"
  "{{ '<video>\n' }}{% elif content['type'] == 'text' %}"
  "{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
  "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}"
  "{{'<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM = (
  "{{ '<|im_start|>system\n你是书生·万象，英文名是InternVL。<|im_end|>\n' }}"
)
REASONING = TEMPLATE.replace("assistant\n", "assistant\n<think>\n")
TEMPLATES = {
  "InternVL": TEMPLATE,
  "InternVL with a system text": SYSTEM + TEMPLATE,
  "reasoning": REASONING,
}
# Question, and width and height of each picture.
PROMPTS = (
  ("What is the sum?", [(40, 30)]),
  ("Compare the pictures,\nplease: 12 + 34", [(16, 16), (33, 16), (7, 50)]),
  ("What is <b>bold</b> & 数字 here?", [(100, 20), (31, 31)]),
  ("No picture at all", []),
)


def picture(width, height):
  """Coarse noise under fine noise, uint8 [height, width, 3]."""
  noise = np.random.RandomState(width * 1000 + height)
  coarse = noise.uniform(0, 200, (height // 4 + 1, width // 4 + 1, 3))
  coarse = np.kron(coarse, np.ones((4, 4, 1)))[:height, :width]
  return (coarse + noise.uniform(0, 55, coarse.shape)).astype(np.uint8)


def tokenizer():
  inner = Tokenizer(models.BPE())
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = decoders.ByteLevel()
  tags = ["<think>", "</think>"]
  trainer = trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    + list(SPECIAL.values())
    + tags,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  texts = [*(text for text, _ in PROMPTS), "system user assistant"] * 3
  inner.train_from_iterator(texts, trainer)
  return inner


def bytes_of(pixels):
  """Back from standardised colours: uint8 [N, height, width, 3]."""
  pixels = np.asarray(pixels, np.float64).transpose(0, 2, 3, 1)
  return np.rint((pixels * STD + MEAN) * 255).astype(np.uint8)


def processor(inner, image_processor):
  """The whole processor, which turns chats to ids."""
  words = PreTrainedTokenizerFast(
    tokenizer_object=inner,
    pad_token="<|endoftext|>",
    eos_token="<|im_end|>",
    extra_special_tokens=SPECIAL,
  )
  return InternVLProcessor(
    image_processor, words, InternVLVideoProcessor(), TOKENS, TEMPLATE
  )


def prompt_ids(process, template, question, pictures):
  """Ids of a user's turn, pictures first."""
  content = [
    {"type": "image", "image": Image.fromarray(picture)} for picture in pictures
  ]
  content.append({"type": "text", "text": question})
  out = process.apply_chat_template(
    [{"role": "user", "content": content}],
    chat_template=template,
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
  )
  return out["input_ids"][0]


def main():
  inner = tokenizer()
  ours = GotOcr2ImageProcessor(**SETTINGS)
  process = processor(inner, ours)
  prompts = []
  for (name, template), (question, sizes) in itertools.product(
    TEMPLATES.items(), PROMPTS
  ):
    pictures = [picture(*size) for size in sizes]
    ids = prompt_ids(process, template, question, pictures)
    prompts.append([name, question, sizes, ids])
  arrays = {}
  for size in sorted({size for _, sizes in PROMPTS for size in sizes}):
    for kind, cut in (
      ("torchvision", ours),
      ("pillow", GotOcr2ImageProcessorPil(**SETTINGS)),
    ):
      out = cut([Image.fromarray(picture(*size))], return_tensors="np")
      arrays[f"{kind}/{size[0]}x{size[1]}"] = bytes_of(out["pixel_values"])
  large = GotOcr2ImageProcessor(size={"height": 448, "width": 448})
  arrays["counts"] = np.array(
    [
      large.get_number_of_image_patches(
        height, width, {"crop_to_patches": True, "max_patches": most}
      )
      for most in (1, 2, 6, 12)
      for width, height in itertools.product(SIDES, SIDES)
    ],
    np.uint8,
  ).reshape(4, len(SIDES), len(SIDES))
  np.savez_compressed(HERE / "internvl_processor.npz", **arrays)
  about = {
    "templates": TEMPLATES,
    "prompts": prompts,
    "sides": SIDES,
    "tokenizer": json.loads(inner.to_str()),
  }
  text = json.dumps(about, ensure_ascii=False)
  (HERE / "internvl_processor.json").write_text(text + "\n")


if __name__ == "__main__":
  torch.manual_seed(0)
  main()
