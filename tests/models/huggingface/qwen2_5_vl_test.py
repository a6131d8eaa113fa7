"""The whole model against the numbers of transformers' torch code."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from jaxrl_mm import masked, pytree
from jaxrl_mm.data import loader, templates, tokenizer
from jaxrl_mm.data.patches import Patching
from jaxrl_mm.data.sources import Example
from jaxrl_mm.models import vlm
from jaxrl_mm.models.huggingface import qwen2_5_vl, tables

pytestmark = pytest.mark.usefixtures("quick_compile")

GOLDEN = Path(__file__).parents[2] / "golden"
INFO = json.loads((GOLDEN / "qwen2_5_vl.json").read_text())
ROWS = INFO["rows"]
PATCHING = Patching(
  windows=32,
  max_pictures=2,
  min_pixels=64,
  max_pixels=64 * 64,
  frames=2,
  seconds_per_frame=1 / INFO["fps"],
  patch_size=4,
  window=4,
)
LAYOUT = loader.Layout(192, 12, PATCHING, templates.QWEN)


@pytest.fixture(scope="module")
def golden():
  return np.load(GOLDEN / "qwen2_5_vl.npz")


@pytest.fixture(scope="module")
def words():
  return PreTrainedTokenizerFast(
    tokenizer_file=str(GOLDEN / "qwen2_5_vl_tokenizer.json"),
    pad_token="<|endoftext|>",
    eos_token="<|im_end|>",
    chat_template=INFO["chat_template"],
  )


@pytest.fixture(scope="module")
def image_token(words):
  return tokenizer.token_id(words, templates.QWEN.image)


@pytest.fixture(scope="module")
def model():
  config = qwen2_5_vl.read_config(INFO["config"])
  return dataclasses.replace(config, dtype="float32", value_head=True)


def _ours(config, tensors):
  """Their tensors as our params, through the table."""
  shapes = jax.eval_shape(lambda key: vlm.init(config, key), jax.random.key(0))
  lines = qwen2_5_vl.table(config, tensors)
  layouts = tables.layouts(lines, shapes)

  def read(name, leaf):
    how = layouts[name]
    parts = [tables.to_ours(tensors[n], how) for n in how.names.values()]
    if not how.stacked:
      return jnp.asarray(parts[0])
    assert how.stacked == (0,)
    return jnp.stack(parts)

  return pytree.map_with_name(read, shapes)


@pytest.fixture(scope="module")
def weights(golden):
  """Their tensors, by name."""
  tensors = {
    name: golden[f"weights/{name}"].astype(np.float32) * scale + offset
    for name, (scale, offset) in INFO["weights"].items()
  }
  tensors["v_head.summary.weight"] = golden["value_head"][None]
  tensors["v_head.summary.bias"] = np.array([0.5], np.float32)
  return {name: np.float32(x) for name, x in tensors.items()}


@pytest.fixture(scope="module")
def params(model, weights):
  return _ours(model, weights)


@pytest.fixture(scope="module")
def prompts(golden, words):
  def encode(i, r):
    pictures = [golden[f"pictures/{i}/{j}"] for j in range(r["pictures"])]
    example = Example(f"row {i}", tuple(pictures), r["question"], "")
    return loader.encode_prompt(example, i, words, LAYOUT), example

  rows = [encode(i, r) for i, r in enumerate(ROWS)]
  return jax.tree.map(jnp.asarray, loader.stack(rows).arrays)


@pytest.fixture(scope="module")
def completions():
  """Right-padded tokens and their mask."""
  lists = [row["completion"] for row in ROWS]
  length = max(map(len, lists))
  tokens = np.array([x + [0] * (length - len(x)) for x in lists], np.int32)
  mask = np.arange(length) < np.array([len(x) for x in lists])[:, None]
  return jnp.asarray(tokens), jnp.asarray(mask)


def test_the_prompts_have_the_ids_and_positions_of_the_reference(
  golden, words, prompts, image_token
):
  video = tokenizer.token_id(words, templates.QWEN.video)
  for i, row in enumerate(ROWS):
    ids = np.array(row["ids"])
    # A video has no placeholder of its own in what the model reads.
    ids = np.where(ids == video, image_token, ids)
    np.testing.assert_array_equal(prompts.tokens[i][prompts.mask[i]], ids)
    places = prompts.positions[i][prompts.mask[i]]
    np.testing.assert_array_equal(places, golden[f"positions/{i}"])


@pytest.fixture(scope="module")
def measured(model, params, prompts, completions, image_token):
  """Everything of one forward and backward pass, compiled once."""
  tokens, mask = completions
  start = prompts.tokens.shape[1] - 1

  @jax.jit
  @partial(jax.value_and_grad, has_aux=True)
  def run(params):
    features = vlm.encode_images(model, params, prompts.images)
    hidden = vlm.hidden_states(
      model, params, prompts, tokens, mask, image_token=image_token
    )
    predicting = hidden[:, start:-1]
    logp, _ = masked.token_logp(predicting, vlm.head(params), tokens)
    return -jnp.sum(logp * mask) / mask.sum(), (hidden, features)

  (loss, numbers), gradients = run(params)
  return loss, gradients, *map(np.asarray, numbers)


def test_the_image_tokens_are_those_of_the_reference(
  golden, measured, prompts, image_token
):
  """Pictures that end inside a window, several in a row, and a video."""
  *_, features = measured
  counts = np.sum(prompts.tokens == image_token, axis=1)
  mine = [x[:n] for x, n in zip(features, counts)]
  stills = np.prod(INFO["image_grids"], axis=1).sum() // 4
  of_pictures = np.concatenate([mine[0], mine[1], mine[2][:9]])
  assert len(of_pictures) == stills
  np.testing.assert_allclose(of_pictures, golden["features/image"], atol=1e-4)
  np.testing.assert_allclose(mine[2][9:], golden["features/video"], atol=1e-4)


def test_hidden_states_logits_and_score_are_those_of_the_reference(
  golden, measured, params, prompts, completions
):
  _, _, hidden, _ = measured
  value_head = jax.tree.map(np.asarray, params["value_head"])
  mask = completions[1]
  valid = np.concatenate([prompts.mask, mask], axis=1)
  for i in range(len(ROWS)):
    mine = hidden[i][valid[i]]
    np.testing.assert_allclose(mine, golden[f"hidden/{i}"], atol=1e-4)
    logits = mine[-1 - mask[i].sum() : -1] @ np.asarray(vlm.head(params)).T
    np.testing.assert_allclose(logits, golden[f"logits/{i}"], atol=1e-4)
    score = mine[-1] @ value_head["kernel"] + value_head["bias"][0]
    np.testing.assert_allclose(score, golden[f"score/{i}"], atol=1e-4)


def test_loss_and_gradients_are_those_of_the_reference(golden, model, measured):
  value, gradients, *_ = measured
  np.testing.assert_allclose(value, INFO["loss"], rtol=1e-5)
  names = [k.split("/")[1] for k in golden if k.startswith("gradients/")]
  lines = qwen2_5_vl.table(model, INFO["weights"])
  mine = dict(pytree.named_leaves(gradients))
  layouts = tables.layouts(lines, gradients)
  assert len(names) == 9
  for name in names:
    leaf, index = _leaf_of(name, layouts)
    expected = tables.to_ours(golden[f"gradients/{name}"], layouts[leaf])
    got = np.asarray(mine[leaf])[index]
    size = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, atol=2e-4 * size, err_msg=name)


def _leaf_of(name, layouts):
  """Which of our leaves, at which index, holds a tensor of theirs."""
  return next(
    (leaf, index)
    for leaf, how in layouts.items()
    for index, theirs in how.names.items()
    if theirs == name
  )


def test_greedy_answers_are_those_of_the_reference(
  golden, greedy, model, params, prompts, image_token
):
  expected = golden["generated"]
  drawn = greedy(model, params, prompts, image_token, expected.shape[1])
  np.testing.assert_array_equal(drawn, expected)


def test_old_names_and_tied_embeddings_map_to_the_same_weights(
  model, weights, params
):
  """Published checkpoints have `visual` and `model`; the 3B has no head."""
  old = {
    name.replace("model.visual", "visual").replace(
      "model.language_model", "model"
    ): x
    for name, x in weights.items()
    if name != "lm_head.weight"
  }
  decoder = dataclasses.replace(model.decoder, tied=True)
  tied = _ours(dataclasses.replace(model, decoder=decoder), old)
  expected = dict(pytree.named_leaves(params))
  found = dict(pytree.named_leaves(tied))
  assert expected.keys() - found.keys() == {"embedder/head"}
  for name, leaf in found.items():
    np.testing.assert_array_equal(leaf, expected[name])
