"""Against transformers' decoders; see tests/golden/make_text.py."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm.errors import InputError
from jaxrl_mm.models.huggingface import text
from jaxrl_mm.structs import Prompts

pytestmark = pytest.mark.usefixtures("quick_compile")

CASES = ("qwen2", "qwen2-tied", "qwen3", "qwen3-tied", "llama", "llama-tied")
NONE = -1  # id of no token


@pytest.fixture(scope="module")
def stored(golden):
  return golden("text")


@pytest.fixture(scope="module")
def models(stored, weights, from_tensors):
  """(config, entries, params) of each case."""

  def read(case):
    config = text.read_config(stored[1][case]["config"])
    config = dataclasses.replace(config, dtype="float32")
    tensors = weights(stored[1][case]["shapes"])
    entries = text.table(config, tensors.keys())
    return config, entries, from_tensors(config, entries, tensors)

  return {case: read(case) for case in CASES}


@pytest.fixture(scope="module")
def prompts(stored):
  tokens, mask = stored[0]["tokens"], stored[0]["mask"]
  return Prompts(
    jnp.asarray(tokens, jnp.int32), jnp.asarray(mask), None, jnp.arange(3)
  )


@pytest.fixture(scope="module")
def scorers(models, score):
  return {case: score(models[case][0], NONE) for case in CASES}


# Each kind once; tests/parity compares all of them, live.
@pytest.mark.parametrize("case", ["qwen2", "qwen3-tied", "llama"])
def test_hidden_states_logits_and_gradients(
  models, scorers, stored, prompts, right_padded, compare_gradients, case
):
  config, entries, params = models[case]
  arrays, about = stored
  for side, rows in (("left", prompts), ("right", right_padded(prompts))):
    (_, (hidden, logits)), gradient = scorers[case](params, rows)
    real = np.asarray(rows.mask)
    gap = np.asarray(hidden) - arrays[f"{case}/{side}/hidden"]
    assert np.abs(gap[real]).max() < 2e-5
  gap = np.asarray(logits) - arrays[f"{case}/logits"]
  assert np.abs(gap[real]).max() < 2e-5
  shapes = about[case]["shapes"]
  theirs = {n: arrays.get(f"{case}/gradient/{n}") for n in shapes}
  compared = compare_gradients(config, entries, shapes, gradient, theirs)
  assert compared == 5


def test_64_greedy_tokens(models, stored, prompts, greedy):
  config, _, params = models["qwen2-tied"]
  got = greedy(config, params, prompts, NONE)
  np.testing.assert_array_equal(got, stored[0]["qwen2-tied/greedy"])


@pytest.mark.parametrize("case", CASES)
def test_a_decoder_saved_without_its_head(models, stored, case):
  """As `AutoModel` saves it: no `model.` before the names."""
  config, entries, _ = models[case]
  names = stored[1][case]["shapes"]
  bare = [n.removeprefix("model.") for n in names]
  expected = [
    e._replace(theirs=e.theirs.removeprefix("model.")) for e in entries
  ]
  assert text.table(config, bare) == tuple(expected)


# ------------------------------------------------------------------- config
QWEN3 = {
  "model_type": "qwen3",
  "attention_bias": False,
  "head_dim": 128,
  "hidden_act": "silu",
  "hidden_size": 1024,
  "intermediate_size": 3072,
  "max_window_layers": 28,
  "num_attention_heads": 16,
  "num_hidden_layers": 28,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-6,
  "rope_scaling": None,
  "rope_theta": 1000000,
  "sliding_window": None,
  "tie_word_embeddings": True,
  "use_sliding_window": False,
  "vocab_size": 151936,
}


def test_the_three_kinds_differ_in_biases_and_norms():
  options = lambda kind: text.read_config(QWEN3 | {"model_type": kind}).decoder
  kinds = [options(kind) for kind in ("qwen2", "qwen3", "llama")]
  assert [k.qkv_bias for k in kinds] == [True, False, False]
  assert [k.qk_norm for k in kinds] == [False, True, False]
  assert all(k.head_dim == 128 and k.tied for k in kinds)


def test_the_rotary_base_has_two_names():
  new = {"rope_type": "default", "rope_theta": 5e5}
  json = {k: v for k, v in QWEN3.items() if not k.startswith("rope")}
  base = lambda more: text.read_config(json | more).decoder.rope_theta
  assert base({"rope_parameters": new}) == 5e5
  assert base({"rope_theta": 2e5, "rope_scaling": None}) == 2e5
  assert base({}) == 1e4  # the default of transformers


def test_heads_have_a_default_width():
  json = {k: v for k, v in QWEN3.items() if k != "head_dim"}
  width = lambda kind: text.read_config(json | {"model_type": kind})
  assert width("llama").decoder.head_dim == 64
  assert width("qwen3").decoder.head_dim == 128


@pytest.mark.parametrize(
  "change, message",
  [
    ({"model_type": "mamba"}, "model_type = 'mamba'"),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu' and .* only 'silu'"),
    ({"attention_bias": True}, "attention_bias = True"),
    ({"mlp_bias": True}, "mlp_bias = True"),
    ({"use_sliding_window": True, "max_window_layers": 20}, "use_sliding_wi"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "rotary positions by 'llama3'"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rotary positions by 'yarn'"),
    ({"hidden_size": None}, "config.json has no 'hidden_size'"),
  ],
)
def test_what_cannot_be_honoured_is_named(change, message):
  with pytest.raises(InputError, match=message):
    text.read_config(QWEN3 | change)


def test_windows_that_begin_behind_the_last_layer_are_none():
  text.read_config(QWEN3 | {"use_sliding_window": True})
