"""A published checkpoint, a run that started from it, and what comes out."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxrl_mm import convert, experiment, pytree, run, sharding, weights
from jaxrl_mm.data import sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import lora, vlm
from jaxrl_mm.models.config import DecoderConfig, ModelConfig
from jaxrl_mm.models.huggingface import families, load, text
from jaxrl_mm.models.huggingface.save import save_params
from jaxrl_mm.models.lora import LoraConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

MODEL = ModelConfig(
  vision=None,
  decoder=DecoderConfig(
    layers=2,
    width=16,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp=32,
    vocab=64,
    norm_eps=1e-5,
  ),
  dtype="float32",
)


def _publish(model, folder, words):
  """A Qwen2 as the hub has it, of random weights."""
  params = jax.jit(vlm.init, static_argnums=0)(model, jax.random.key(0))
  table = text.table(model, {"model.embed_tokens.weight", "lm_head.weight"})
  save_params(params, table, folder, like=None, dtype="float32")
  d = model.decoder
  description = {
    "model_type": "qwen2",
    "num_hidden_layers": d.layers,
    "hidden_size": d.width,
    "num_attention_heads": d.heads,
    "num_key_value_heads": d.kv_heads,
    "head_dim": d.head_dim,
    "intermediate_size": d.mlp,
    "vocab_size": d.vocab,
    "rope_theta": d.rope_theta,
    "rms_norm_eps": d.norm_eps,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
  }
  (folder / "config.json").write_text(json.dumps(description))
  words.save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A decoder alone, with the words of the digits."""
  folder = tmp_path_factory.mktemp("hub") / "tiny"
  return _publish(MODEL, folder, tok.build(sources.digits_texts()))


def _tensors(folder, name="model"):
  return safetensors.numpy.load_file(folder / f"{name}.safetensors")


def test_a_published_checkpoint_comes_out_bit_for_bit(published, tmp_path):
  out = tmp_path / "out"
  convert.convert(
    convert.parse(
      ["--model", str(published), "--dtype", "float32", "--out", str(out)]
    )
  )
  before, after = _tensors(published), _tensors(out)
  assert before.keys() == after.keys()
  for name, x in before.items():
    np.testing.assert_array_equal(after[name], x)
  for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
    assert (out / name).read_bytes() == (published / name).read_bytes()


@pytest.fixture(scope="module")
def trained(published, tmp_path_factory):
  """The folder of a run that trains adapters for two steps."""
  small = experiment.Experiment(
    model=MODEL,
    pretrained=str(published),
    lora=LoraConfig(rank=2, alpha=4.0),
    stages=("sft",),
  )
  optimizer = dataclasses.replace(
    small.sft.optimizer, learning_rate=1e-2, trainable=".*/lora_[ab]"
  )
  small = dataclasses.replace(
    small,
    sft=dataclasses.replace(
      small.sft, steps=2, batch=8, micro_batch=1, optimizer=optimizer
    ),
    data=dataclasses.replace(
      small.data, demonstrations="sums/train", prompts="sums/train"
    ),
    evaluation=dataclasses.replace(
      small.evaluation, source="sums/test", size=8, batch=8
    ),
  )
  small = dataclasses.replace(
    small, data=dataclasses.replace(small.data, prompt_tokens=64)
  )
  folder = tmp_path_factory.mktemp("runs") / "adapters"
  run.run(small, folder)
  return folder


def test_a_run_comes_out_with_its_adapters_merged(published, trained, tmp_path):
  out = tmp_path / "out"
  arguments = ["--run", str(trained), "--dtype", "float32", "--out", str(out)]
  convert.convert(convert.parse(arguments))
  before, after = _tensors(published), _tensors(out)
  assert before.keys() == after.keys()
  moved = {n for n, x in before.items() if (after[n] != x).any()}
  adapted = ("q_proj", "k_proj", "v_proj", "o_proj", "gate", "up_p", "down")
  assert len(moved) == 2 * 7
  assert all(any(a in n for a in adapted) for n in moved)


def test_adapters_alone_are_what_was_merged(published, trained, tmp_path):
  out = tmp_path / "out"
  arguments = ["--run", str(trained), "--adapters", "--out", str(out)]
  convert.convert(convert.parse(arguments))
  files = _tensors(out, "adapter_model")
  about = json.loads((out / "adapter_config.json").read_text())
  assert (about["r"], about["lora_alpha"]) == (2, 4.0)
  name = "base_model.model.model.layers.1.self_attn.o_proj"
  a, b = files[name + ".lora_A.weight"], files[name + ".lora_B.weight"]
  e = experiment.read(trained)
  merged = lora.merge(weights.final(e, trained, sharding.make_mesh(1, -1)))
  out_proj = merged["decoder"]["layers"]["attention"]["out"]["kernel"][1]
  base = _tensors(published)["model.layers.1.self_attn.o_proj.weight"]
  np.testing.assert_allclose(
    out_proj.reshape(16, 16).T, base + 2 * b @ a, atol=1e-6
  )


def test_a_run_from_no_checkpoint_is_refused(tmp_path):
  demo = experiment.Experiment(model=MODEL)
  experiment.claim_folder(tmp_path / "run", demo)
  with pytest.raises(InputError, match="started from no published checkpoint"):
    convert.write_run(
      tmp_path / "run", tmp_path / "out", "float32", adapters=False
    )


def test_another_model_than_the_folders_is_named(published):
  other = dataclasses.replace(
    MODEL, decoder=dataclasses.replace(MODEL.decoder, mlp=64)
  )
  e = experiment.Experiment(model=other, pretrained=str(published))
  with pytest.raises(InputError, match="decoder.mlp is 32 there and 64 here"):
    weights.initial(e, sharding.make_mesh())


def test_the_state_of_a_run_holds_adapters_alone(trained):
  e = experiment.read(trained)
  params = weights.final(e, trained, sharding.make_mesh(1, -1))
  adapters, _ = pytree.split(params, ".*/lora_[ab]")
  assert all(np.any(x != 0) for x in jax.tree.leaves(adapters))


@pytest.fixture(scope="module")
def reasoner(internvl_folder, qwen_folder, tmp_path_factory):
  """A decoder that fits the tiny InternVL and knows no pictures yet."""
  model = families.read_config(internvl_folder)
  words = tok.load(str(qwen_folder))
  decoder = dataclasses.replace(model.decoder, vocab=len(words), mlp=48)
  folder = tmp_path_factory.mktemp("hub") / "reasoner"
  alone = dataclasses.replace(model, vision=None, decoder=decoder)
  return _publish(alone, folder, words)


def _assemble(vision, llm, out):
  parts = ["--vision", vision, "--projector", vision, "--llm", llm]
  arguments = [*parts, "--dtype", "float32", "--out", out]
  convert.convert(convert.parse([str(a) for a in arguments]))


def test_three_checkpoints_become_one(internvl_folder, reasoner, tmp_path):
  out = tmp_path / "out"
  _assemble(internvl_folder, reasoner, out)
  seen, read, whole = map(_tensors, (internvl_folder, reasoner, out))
  of_text = lambda name: "language_model" in name or "lm_head" in name
  for name in filter(lambda n: not of_text(n), seen):
    np.testing.assert_array_equal(whole.pop(name), seen[name])
  assert len(whole) == len(read) and all(map(of_text, whole))
  vocab = families.read_config(reasoner).decoder.vocab
  for name, x in whole.items():
    part = name.rpartition("language_model.")[2].removeprefix("model.")
    before = read.get(part, read.get(f"model.{part}"))
    np.testing.assert_array_equal(x[:vocab], before)
    if vocab in before.shape:  # rows for <img>, <IMG_CONTEXT> and </img>
      mean = np.tile(before.mean(0), (3, 1))
      np.testing.assert_allclose(x[vocab:], mean, atol=1e-6)


def test_what_was_put_together_is_a_checkpoint(
  internvl_folder, reasoner, tmp_path
):
  out = tmp_path / "out"
  _assemble(internvl_folder, reasoner, out)
  model, words = families.read_config(out), tok.load(str(out))
  assert model.vision == families.read_config(internvl_folder).vision
  assert (model.decoder.mlp, model.decoder.vocab) == (48, len(words))
  params = load.load_params(out, model, sharding.make_mesh())
  assert params["embedder"]["table"].shape[0] == len(words)
  about = json.loads((out / "config.json").read_text())
  image_token = tok.token_id(words, tok.IMAGE_TOKEN)
  assert about["image_token_id"] == image_token


def test_parts_that_do_not_fit_are_named(internvl_folder, published, tmp_path):
  with pytest.raises(InputError, match="the decoder has 16 and .* takes"):
    _assemble(internvl_folder, published, tmp_path / "out")
  with pytest.raises(InputError, match="tiny is a model of text alone"):
    _assemble(published, published, tmp_path / "out")
