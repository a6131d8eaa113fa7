"""What `python -m jaxrl_mm.convert` writes, read by transformers alone."""

import json

import make_internvl
import make_qwen2_5_vl
import make_text
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
  AutoConfig,
  AutoModelForCausalLM,
  AutoModelForImageTextToText,
  AutoTokenizer,
)

from jaxrl_mm import convert

pytestmark = pytest.mark.usefixtures("quick_compile")

FAMILIES = (*make_text.DECODERS, "internvl", "qwen2_5_vl")


def _config(family, words):
  if family == "qwen2_5_vl":
    return make_qwen2_5_vl.make_config(words.get_vocab())
  if family == "internvl":
    sizes = make_internvl.CASES["6b"] | {"model_type": "internvl"}
    return AutoConfig.for_model(**sizes, image_token_id=make_internvl.IMAGE)
  return AutoConfig.for_model(**make_text.DECODERS[family])


def _kind(family):
  of_text = family in make_text.DECODERS
  return AutoModelForCausalLM if of_text else AutoModelForImageTextToText


@pytest.fixture(params=FAMILIES)
def published(request, tmp_path):
  """`(folder, kind of model, model)`: bfloat16 weights in two shards or more,
  a tokenizer and a generation config of its own."""
  torch.manual_seed(0)
  words = make_qwen2_5_vl.make_tokenizer()
  config = _config(request.param, words)
  kind = _kind(request.param)
  model = kind.from_config(config, dtype=torch.bfloat16).eval()
  model.generation_config.update(do_sample=True, top_k=17)
  folder = tmp_path / "published"
  model.save_pretrained(folder, max_shard_size="40KB")
  words.save_pretrained(folder)
  return folder, kind, model


def _convert(folder, *more):
  out = folder.with_name("out")
  arguments = ["--model", str(folder), "--out", str(out), *more]
  convert.convert(convert.parse(arguments))
  return out


def _tensors(folder):
  files = sorted(folder.glob("*.safetensors"))
  return {n: x for file in files for n, x in load_file(file).items()}


@torch.no_grad()
def _logits(model):
  """Of text: weights of the tower are compared one by one."""
  return model(input_ids=torch.arange(1, 40)[None]).logits


def test_a_checkpoint_goes_through_to_the_bit(published):
  folder, kind, model = published
  out = _convert(folder)
  before, after = _tensors(folder), _tensors(out)
  assert before.keys() == after.keys()
  for name, x in before.items():
    assert after[name].dtype == x.dtype == torch.bfloat16
    assert torch.equal(after[name], x), name
  for path in folder.iterdir():
    if "safetensors" not in path.name:
      assert (out / path.name).read_bytes() == path.read_bytes(), path.name
  again, report = kind.from_pretrained(out, output_loading_info=True)
  assert not any(report.values()), report
  assert again.dtype == torch.bfloat16
  assert again.generation_config.top_k == 17
  assert AutoTokenizer.from_pretrained(out).chat_template
  for (name, x), y in zip(model.state_dict().items(), again.parameters()):
    assert torch.equal(x, again.state_dict()[name]), name
    assert y.dtype == torch.bfloat16
  assert torch.equal(_logits(again.float()), _logits(model.float()))


def test_another_dtype_is_told_to_readers(published):
  folder, kind, model = published
  out = _convert(folder, "--dtype", "float32")
  assert {x.dtype for x in _tensors(out).values()} == {torch.float32}
  assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
  again = kind.from_pretrained(out)
  assert again.dtype == torch.float32
  assert torch.equal(_logits(again), _logits(model.float()))


def test_each_tensor_keeps_its_own_dtype(tmp_path):
  """A value head of float32 beside a model of bfloat16."""
  words = make_qwen2_5_vl.make_tokenizer()
  config = _config("qwen2_5_vl", words)
  folder = tmp_path / "published"
  AutoModelForImageTextToText.from_config(
    config, dtype=torch.bfloat16
  ).save_pretrained(folder)
  head = {
    "v_head.summary.weight": torch.randn(1, 48),
    "v_head.summary.bias": torch.randn(1),
  }
  save_file(head, folder / "value_head.safetensors")
  out = _convert(folder)
  before, after = _tensors(folder), _tensors(out)
  assert before.keys() == after.keys()
  for name, x in before.items():
    assert after[name].dtype == x.dtype and torch.equal(after[name], x), name
