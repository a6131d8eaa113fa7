"""Decoders against transformers, and a real one.

  SMOLLM2=FOLDER make parity

FOLDER as `jaxrl_mm/models/huggingface/gguf.py` says how to make it.
"""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import make_internvl as reference
import make_text
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from jaxrl_mm import sharding
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.models.huggingface import families, load
from jaxrl_mm.sampling.text import make_answerer
from jaxrl_mm.structs import Prompts

FAMILIES = {
  "qwen2": "Qwen2, Qwen2.5, QwQ",
  "qwen3": "Qwen3",
  "llama": "Llama, SmolLM2",
}
QUESTIONS = (
  "What is the capital of France?",
  "Name three primary colours.",
  "How many legs has a spider?",
)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_logits_gradients_and_64_tokens(
  name, tied, tmp_path, read_folder, read_gradients, compare, quick_compile
):
  del quick_compile
  tokens, mask, _ = reference.rows()
  sizes = make_text.DECODERS[name] | {"tie_word_embeddings": tied}
  config = AutoConfig.for_model(**sizes, pad_token_id=reference.PAD)
  model = AutoModelForCausalLM.from_config(config)
  arrays, _ = reference.results(model, tokens, mask, ())
  model.save_pretrained(tmp_path)
  prompts = Prompts(
    jnp.asarray(tokens, jnp.int32),
    jnp.asarray(mask, bool),
    None,
    jnp.arange(3),
  )
  config, params = read_folder(tmp_path)
  slopes = read_gradients(model, config)
  family = FAMILIES[name] + ", tied" * tied
  compare(family, config, params, slopes, arrays, prompts, -1)


def _continued(model, ids):
  """The most likely 32 tokens behind `ids`, by transformers."""
  out = model.generate(
    input_ids=torch.tensor([ids]),
    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
    max_new_tokens=32,
    do_sample=False,
  )
  return out[0, len(ids) :].tolist()


@pytest.fixture(scope="module")
def smollm2():
  """(config, params, tokenizer, torch model)."""
  if "SMOLLM2" not in os.environ:
    pytest.skip("SMOLLM2 names no folder")
  folder = Path(os.environ["SMOLLM2"])
  config = families.read_config(folder)
  config = dataclasses.replace(config, dtype="float32")
  placed = load.load_params(folder, config, sharding.make_mesh(1, -1))
  params = jax.device_put(jax.device_get(placed), jax.devices()[0])
  model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  return config, params, tok.load(str(folder)), model.eval()


def test_a_real_model_continues_a_text(smollm2, greedy):
  config, params, tokenizer, model = smollm2
  ids = tokenizer.encode("The capital of France is", add_special_tokens=False)
  prompts = Prompts(
    jnp.asarray([ids]),
    jnp.ones((1, len(ids)), bool),
    None,
    jnp.arange(1),
  )
  theirs = _continued(model, ids)
  got = greedy(config, params, prompts, -1, length=32)[0]
  np.testing.assert_array_equal(got[: len(theirs)], theirs)
  assert tokenizer.decode(theirs).startswith(" Paris")


def test_a_real_model_answers(smollm2):
  config, params, tokenizer, model = smollm2
  ask = lambda question: tokenizer.apply_chat_template(
    [{"role": "user", "content": question}],
    add_generation_prompt=True,
    return_dict=False,
  )
  theirs = [_continued(model, ask(question)) for question in QUESTIONS]
  answer = make_answerer(
    config, params, tokenizer, prompt_tokens=64, max_tokens=32, batch=3
  )
  got = answer(list(QUESTIONS))
  print(*got, sep="\n")
  assert got == tok.decode(tokenizer, theirs)
