"""Files made by the writer of the format itself."""

import json

import numpy as np
import pytest

from jaxrl_mm import convert, sharding
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.errors import InputError
from jaxrl_mm.models.huggingface import families, load, safetensors, text
from jaxrl_mm.models.huggingface import gguf as ours

gguf = pytest.importorskip("gguf")

WIDTH, HEADS, KV_HEADS, EACH, MLP, LAYERS = 64, 4, 2, 16, 96, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Spaces are written as \u0120, as byte-level BPE does.
WORDS = [*SPECIAL, *"abc123", "\u0120", "\u010a", "ab", "\u0120ab"]
MERGES = ["a b", "\u0120 ab"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
NAMES = {
  "attn_q": ("self_attn.q_proj", (HEADS * EACH, WIDTH)),
  "attn_k": ("self_attn.k_proj", (KV_HEADS * EACH, WIDTH)),
  "attn_v": ("self_attn.v_proj", (KV_HEADS * EACH, WIDTH)),
  "attn_output": ("self_attn.o_proj", (WIDTH, HEADS * EACH)),
  "ffn_gate": ("mlp.gate_proj", (MLP, WIDTH)),
  "ffn_up": ("mlp.up_proj", (MLP, WIDTH)),
  "ffn_down": ("mlp.down_proj", (WIDTH, MLP)),
  "attn_norm": ("input_layernorm", (WIDTH,)),
  "ffn_norm": ("post_attention_layernorm", (WIDTH,)),
}


def _weights():
  """Weights by their names in the hub."""
  rng = np.random.default_rng(0)
  make = lambda *shape: rng.standard_normal(shape, np.float32)
  layers = {
    f"model.layers.{i}.{hub}.weight": make(*shape)
    for i in range(LAYERS)
    for hub, shape in NAMES.values()
  }
  ends = {
    "model.embed_tokens.weight": make(len(WORDS), WIDTH),
    "model.norm.weight": make(WIDTH),
  }
  return ends | layers


def _interleaved(x, heads):
  """Rows 0, 1, ..., E/2, ... of each head as 0, E/2, 1, E/2 + 1, ..."""
  rows = np.arange(len(x)).reshape(heads, -1)
  half = rows.shape[1] // 2
  order = [r for h in rows for pair in zip(h[:half], h[half:]) for r in pair]
  return x[order]


def _write(file, weights, *, architecture="llama", pre="smollm", more=()):
  writer = gguf.GGUFWriter(file, architecture)
  writer.add_block_count(LAYERS)
  writer.add_context_length(128)
  writer.add_embedding_length(WIDTH)
  writer.add_feed_forward_length(MLP)
  writer.add_head_count(HEADS)
  writer.add_head_count_kv(KV_HEADS)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_rope_freq_base(1e5)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(WORDS)
  writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
  writer.add_token_merges(MERGES)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_pad_token_id(0)
  writer.add_chat_template(TEMPLATE)
  for name, x, *kind in [*_renamed(weights), *more]:
    writer.add_tensor(name, x, raw_dtype=kind[0] if kind else None)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


def _renamed(weights):
  yield "token_embd.weight", weights["model.embed_tokens.weight"]
  yield "output_norm.weight", weights["model.norm.weight"]
  for i in range(LAYERS):
    for name, (hub, _) in NAMES.items():
      x = weights[f"model.layers.{i}.{hub}.weight"]
      heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name)
      yield f"blk.{i}.{name}.weight", _interleaved(x, heads) if heads else x


@pytest.fixture
def file(tmp_path):
  return _write(tmp_path / "a.gguf", _weights())


def test_weights_come_out_under_their_names(file, tmp_path):
  ours.export(file, tmp_path / "out")
  tensors = safetensors.scan(tmp_path / "out").tensors
  weights = _weights()
  assert tensors.keys() == weights.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(safetensors.view(tensor), weights[name])


def test_quantised_weights_have_the_values_they_stand_for(tmp_path):
  """Blocks of 32 small integers with one scale each."""
  whole = np.random.default_rng(1).integers(-127, 128, (len(WORDS), WIDTH))
  whole[:, ::32] = 127  # the largest of each block fixes the scale
  scale = 2.0 ** -(np.arange(len(WORDS) * 2).reshape(-1, 2) % 8)
  head = (whole * np.repeat(scale, 32, 1)).astype(np.float32)
  kind = gguf.GGMLQuantizationType.Q8_0
  stored = gguf.quants.quantize(head, kind)
  file = _write(
    tmp_path / "a.gguf", _weights(), more=[("output.weight", stored, kind)]
  )
  ours.export(file, tmp_path / "out")
  tensors = safetensors.scan(tmp_path / "out").tensors
  got = safetensors.view(tensors["lm_head.weight"])
  np.testing.assert_array_equal(got, head)


def test_the_config_names_the_sizes(file, tmp_path):
  ours.export(file, tmp_path / "out")
  fields = json.loads((tmp_path / "out" / "config.json").read_text())
  c = text.read_config(fields).decoder
  assert (c.layers, c.width, c.heads, c.kv_heads) == (2, 64, 4, 2)
  assert (c.head_dim, c.mlp, c.vocab) == (16, 96, len(WORDS))
  assert (c.tied, c.rope_theta, c.norm_eps) == (True, 1e5, 1e-5)
  assert (c.qkv_bias, c.qk_norm) == (False, False)


def test_output_embeddings_of_their_own_are_exported(tmp_path):
  head = np.ones((len(WORDS), WIDTH), np.float32)
  file = _write(tmp_path / "a.gguf", _weights(), more=[("output.weight", head)])
  ours.export(file, tmp_path / "out")
  fields = json.loads((tmp_path / "out" / "config.json").read_text())
  assert not fields["tie_word_embeddings"]
  tensors = safetensors.scan(tmp_path / "out").tensors
  assert "lm_head.weight" in tensors


def test_the_tokenizer_merges_and_keeps_digits_apart(file, tmp_path):
  ours.export(file, tmp_path / "out")
  tokenizer = tok.load(str(tmp_path / "out"))
  ids = tokenizer.encode("ab ab 12<|im_end|>", add_special_tokens=False)
  pieces = ["ab", "\u0120ab", "\u0120", "1", "2", "<|im_end|>"]
  assert ids == [WORDS.index(piece) for piece in pieces]
  assert tokenizer.decode(ids) == "ab ab 12<|im_end|>"
  assert tokenizer.eos_token == "<|im_end|>"
  turn = [{"role": "user", "content": "ab"}]
  text = tokenizer.apply_chat_template(turn, tokenize=False)
  assert text == "<|im_start|>ab"


@pytest.mark.parametrize(
  "change, message",
  [
    ({"architecture": "qwen2"}, "general.architecture = 'qwen2' and only"),
    ({"pre": "llama-bpe"}, "tokenizer.ggml.pre = 'llama-bpe'"),
    (
      {"more": [("rope_freqs.weight", np.ones(8, np.float32))]},
      "unknown tensor 'rope_freqs.weight'",
    ),
  ],
)
def test_another_kind_of_model_is_named(tmp_path, change, message):
  file = _write(tmp_path / "a.gguf", _weights(), **change)
  with pytest.raises(InputError, match=message):
    ours.export(file, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_file_of_another_format_is_named(tmp_path):
  (tmp_path / "a.gguf").write_bytes(b"0" * 64)
  for name in ("a.gguf", "absent.gguf"):
    with pytest.raises(InputError, match=f"{name} cannot be read"):
      ours.export(tmp_path / name, tmp_path / "out")


def test_the_command_line_makes_a_folder_to_start_from(file, tmp_path):
  out = tmp_path / "out"
  convert.convert(convert.parse(["--gguf", str(file), "--out", str(out)]))
  model = families.read_config(out)
  d = model.decoder
  assert (d.layers, d.width, d.kv_heads, d.tied) == (LAYERS, WIDTH, 2, True)
  assert families.read_context(out) == 128
  params = load.load_params(out, model, sharding.make_mesh())
  down = _weights()["model.layers.1.mlp.down_proj.weight"]
  ours_down = params["decoder"]["layers"]["down"]["kernel"][1]
  np.testing.assert_array_equal(ours_down, down.T)
  assert tok.load(str(out)).encode("ab ab") == [
    WORDS.index("ab"),
    len(WORDS) - 1,
  ]
