"""Our adapters, loaded and merged by peft."""

import jax
import jax.numpy as jnp
import make_internvl
import make_qwen2_5_vl
import make_text
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import (
  AutoConfig,
  AutoModelForCausalLM,
  AutoModelForImageTextToText,
)

from jaxrl_mm import convert, pytree
from jaxrl_mm.models import lora, vlm
from jaxrl_mm.models.attention import Causal
from jaxrl_mm.models.huggingface import peft
from jaxrl_mm.models.huggingface.save import save_params
from jaxrl_mm.models.lora import LoraConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

TOKENS = np.arange(1, 25).reshape(2, 12)
TARGETS = {
  "qwen2": "decoder/layers/.*/kernel",
  "qwen2_5_vl": (
    "(decoder/layers/.*|vision/layers/attention/out|projector/up)/kernel"
  ),
  "internvl": "(decoder/layers/.*|vision/layers/up)/kernel",
}


def _model(family):
  if family == "qwen2":
    config = AutoConfig.for_model(**make_text.DECODERS[family])
    return AutoModelForCausalLM.from_config(config)
  if family == "internvl":
    sizes = make_internvl.CASES["300m"]
    config = AutoConfig.for_model("internvl", **sizes)
  else:
    words = make_qwen2_5_vl.make_tokenizer()
    config = make_qwen2_5_vl.make_config(words.get_vocab())
  return AutoModelForImageTextToText.from_config(config)


@pytest.fixture(params=TARGETS)
def adapted(request, tmp_path, read_folder):
  """`(base folder, its model, config, lora config, params with adapters)`."""
  torch.manual_seed(0)
  model = _model(request.param).eval()
  base = tmp_path / "base"
  model.save_pretrained(base)
  config, params = read_folder(base)
  adapters = LoraConfig(rank=3, alpha=7.0, targets=TARGETS[request.param])
  params = lora.attach(adapters, params, jax.random.key(0))
  noise = np.random.default_rng(0)
  draw = lambda name, x: jnp.asarray(
    0.1 * noise.standard_normal(x.shape, np.float32)
    if name.endswith("lora_b")
    else x
  )
  params = pytree.map_with_name(draw, params)
  return base, model, config, adapters, params


@torch.no_grad()
def _their_logits(model):
  return model(input_ids=torch.tensor(TOKENS)).logits.numpy()


def _our_logits(config, params):
  x = vlm.embed(config, params, jnp.asarray(TOKENS, jnp.int32), None, -1)
  mask = jnp.ones(TOKENS.shape, bool)
  where = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
  if config.decoder.rope_sections:
    where = jnp.repeat(where[..., None], 3, axis=-1)
  run = jax.jit(
    lambda params, x: (
      vlm.run_decoder(config, params, x, where, Causal(mask))[0]
      @ vlm.head(params).T
    )
  )
  return np.asarray(run(params, x))


def test_adapters_act_and_merge_in_peft_as_here(adapted, tmp_path):
  base, model, config, adapters, params = adapted
  plain = _their_logits(model)
  table = peft.module_table(base, config)
  peft.save(params, table, adapters, str(base), tmp_path / "adapter")
  theirs = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
  loaded = {n for n, _ in theirs.named_parameters() if ".lora_" in n}
  written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
  assert len(loaded) == len(written)
  expected = _their_logits(theirs)
  assert np.abs(expected - plain).max() > 1e-2
  np.testing.assert_allclose(
    _our_logits(config, params), expected, atol=1e-4, rtol=0
  )
  merged = theirs.merge_and_unload()
  merged.save_pretrained(tmp_path / "theirs")
  table = convert.entries(base, config)
  save_params(
    lora.merge(params), table, tmp_path / "ours", like=base, dtype="float32"
  )
  ours = load_file(tmp_path / "ours" / "model.safetensors")
  same = load_file(tmp_path / "theirs" / "model.safetensors")
  assert ours.keys() == same.keys()
  for name, x in same.items():
    np.testing.assert_allclose(ours[name], x, atol=1e-6, err_msg=name)
