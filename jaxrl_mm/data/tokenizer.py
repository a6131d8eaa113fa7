"""Tokenizers: real ones from a folder, and a small one for the demo."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import SupportsInt

# transformers warns at import that it found no PyTorch; we need none.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jaxrl_mm.errors import InputError

Tokenizer = PreTrainedTokenizerFast

PAD = "<|endoftext|>"
START, END = "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

CHATML = (
  "{% for message in messages %}<|im_start|>{{ message.role }}\n"
  "{{ message.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load(folder: str) -> Tokenizer:
  """The tokenizer of a checkpoint folder, as transformers saves it."""
  if not Path(folder).is_dir():
    raise InputError(
      f"the tokenizer folder {folder} does not exist; download the model's "
      "folder first and name it in config.data.tokenizer"
    )
  try:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
  except (OSError, ValueError) as error:
    raise InputError(
      f"the folder {folder} holds no tokenizer that can be read: "
      f"{str(error).splitlines()[0]}"
    ) from error
  for name in ("pad_token", "eos_token", "chat_template"):
    if getattr(tokenizer, name, None) is None:
      raise InputError(f"the tokenizer in {folder} has no {name}; set one")
  return tokenizer


def build(texts: Iterable[str]) -> Tokenizer:
  """A word-level tokenizer that knows the words of `texts` and no others.

  Words and digits keep the space before them and a digit stands alone, so
  decoding is plain joining. It has the special tokens and the chat form of
  Qwen2.
  """
  special = [PAD, START, END, IMAGE_START, IMAGE_TOKEN, IMAGE_END, *TAGS]
  pieces = pre_tokenizers.Split(
    tokenizers.Regex(r" ?[A-Za-z]+| ?\d|\s|[^\w\s]"), "isolated"
  )
  words = {w for text in texts for w, _ in pieces.pre_tokenize_str(text)}
  vocabulary = [*special, "<unk>", *sorted(words)]
  model = models.WordLevel(
    {word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"
  )
  inner = tokenizers.Tokenizer(model)
  inner.pre_tokenizer = pieces
  inner.decoder = decoders.Fuse()
  inner.add_special_tokens(special)
  return PreTrainedTokenizerFast(
    tokenizer_object=inner,
    pad_token=PAD,
    eos_token=END,
    unk_token="<unk>",
    chat_template=CHATML,
    clean_up_tokenization_spaces=False,
  )


def token_id(tokenizer: Tokenizer, token: str) -> int:
  """The id of a special token. Ids differ between checkpoints: ask by name."""
  found = tokenizer.convert_tokens_to_ids(token)
  if found is None or found == tokenizer.unk_token_id:
    raise InputError(
      f"the tokenizer {tokenizer.name_or_path or 'in memory'} has no token "
      f"'{token}'; use the tokenizer that belongs to the model"
    )
  return found


def add_image_tokens(tokenizer: Tokenizer) -> int:
  """Teaches a text tokenizer the tokens of pictures; returns how many."""
  tokens = [IMAGE_START, IMAGE_TOKEN, IMAGE_END]
  return tokenizer.add_tokens(tokens, special_tokens=True)


def completion_ids(tokenizer: Tokenizer, text: str) -> list[int]:
  """Ids of an assistant's answer, ended by the end-of-turn token."""
  ids = tokenizer.encode(text, add_special_tokens=False)
  return [*ids, tokenizer.eos_token_id]


def decode(
  tokenizer: Tokenizer, rows: Iterable[Iterable[SupportsInt]]
) -> list[str]:
  """Texts of completions, without end-of-turn and padding tokens.

  Only these two are dropped: the tags of the answer are special tokens in
  some vocabularies, and the graders need them.
  """
  drop = {tokenizer.eos_token_id, tokenizer.pad_token_id}
  kept = [[int(i) for i in row if int(i) not in drop] for row in rows]
  return tokenizer.batch_decode(kept, skip_special_tokens=False)
