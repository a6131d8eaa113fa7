"""Qwen2.5-VL and Skywork-VL Reward beside transformers, in both layouts."""

import json

import jax
import jax.numpy as jnp
import make_qwen2_5_vl as reference
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from jaxrl_mm import pytree
from jaxrl_mm.data import loader, patches, templates
from jaxrl_mm.data.patches import Patching
from jaxrl_mm.data.sources import Example
from jaxrl_mm.models import vlm

pytestmark = pytest.mark.usefixtures("quick_compile")

PATCHING = Patching(
  windows=24,
  max_pictures=2,
  min_pixels=64,
  max_pixels=40 * 40,
  frames=2,
  seconds_per_frame=1 / reference.FPS,
  patch_size=reference.PATCH,
  window=4,
)
# Question, height and width of pictures, frames, height and width of videos.
# A video is wide for its length: after a long one transformers since 5.3 lets
# text start inside the video's time.
ROWS = (
  ("One?", ((37, 21),), ()),
  ("Two pictures?", ((8, 51), (90, 30)), ()),
  ("A picture and a video.", ((26, 26),), ((5, 30, 40),)),
  ("No picture at all.", (), ()),
)


def _picture(shape):
  """Of an odd size, then brought to whole patches by us for both sides.

  Resizing itself is compared in processors_parity.py.
  """
  rng = np.random.default_rng(shape)
  noise = rng.integers(256, size=(*shape, 3)).astype(np.uint8)
  resized = patches.resize(noise, PATCHING)
  return resized if len(shape) == 3 else resized[0]


@pytest.fixture(scope="module")
def words():
  return reference.make_tokenizer()


@pytest.fixture(scope="module")
def rows(words):
  """`(ours, theirs)` of the prompts, and the id of the image token.

  The ids are compared on the way.
  """
  processor = reference.make_processor(
    words, reference.PATCH, {"shortest_edge": 64, "longest_edge": 64 * 64}
  )
  examples, theirs = [], []
  for i, (question, *shapes) in enumerate(ROWS):
    pictures, videos = (tuple(map(_picture, some)) for some in shapes)
    examples.append(Example(f"row {i}", pictures + videos, question, ""))
    theirs.append(reference.process(processor, question, pictures, videos))
  length = max(row["input_ids"].shape[1] for row in theirs)
  layout = loader.Layout(length, 1, PATCHING, templates.QWEN)
  encode = lambda i, e: (loader.encode_prompt(e, i, words, layout), e)
  ours = loader.stack([encode(i, e) for i, e in enumerate(examples)]).arrays
  image, video = templates.placeholders(words, templates.QWEN)
  for row, tokens, mask in zip(theirs, ours.tokens, ours.mask):
    ids = row["input_ids"][0].numpy()
    np.testing.assert_array_equal(
      tokens[mask], np.where(ids == video, image, ids)
    )
  return jax.tree.map(jnp.asarray, ours), theirs, image


def _log_loss(logits, batch, image, video):
  """The mean over real tokens; a video's are pictures' for us."""
  tokens = torch.where(batch["input_ids"] == video, image, batch["input_ids"])
  logp = logits[:, :-1].log_softmax(-1)
  logp = logp.gather(-1, tokens[:, 1:, None])[..., 0]
  mask = batch["attention_mask"]
  scored = (mask[:, 1:] * mask[:, :-1]).float()
  return -(logp * scored).sum() / scored.sum()


def _results(model, rows, pad, image, video):
  """Hidden states and logits, greedy tokens; gradients stay in the model."""
  none, arrays = [[]] * len(rows), {}
  for side in ("left", "right"):
    batch = reference.collate(rows, none, side, pad)
    out = reference.forward(model, batch)
    arrays[f"{side}/hidden"] = out.hidden_states[-1].detach().numpy()
  arrays["logits"] = out.logits.detach().numpy()
  model.zero_grad()
  _log_loss(out.logits, batch, image, video).backward()
  prompt = reference.collate(rows, none, "left", pad)
  drawn = model.generate(
    **prompt,
    max_new_tokens=64,
    min_new_tokens=64,
    do_sample=False,
    eos_token_id=None,
    pad_token_id=pad,
  )
  arrays["greedy"] = drawn[:, prompt["input_ids"].shape[1] :].numpy()
  return arrays


def _model(words, tied):
  config = reference.make_config(words.get_vocab())
  config.tie_word_embeddings = tied
  return reference.make_model(config, {}, {})


def _flatten_config(folder):
  """config.json as it was published, the decoder's fields in the open."""
  path = folder / "config.json"
  fields = json.loads(path.read_text())
  inner = fields.pop("text_config")
  tied = fields["tie_word_embeddings"]
  rope = inner.pop("rope_parameters")
  sections = {"type": "mrope", "mrope_section": rope["mrope_section"]}
  inner |= {"rope_scaling": sections, "rope_theta": rope["rope_theta"]}
  fields = inner | fields | {"tie_word_embeddings": tied}
  path.write_text(json.dumps(fields))


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_hidden_states_logits_gradients_and_64_tokens(
  tied, words, rows, tmp_path, read_folder, read_gradients, equal_trees, compare
):
  prompts, theirs, image = rows
  model = _model(words, tied)
  _, video = templates.placeholders(words, templates.QWEN)
  arrays = _results(model, theirs, words.pad_token_id, image, video)
  model.save_pretrained(tmp_path / "old")
  _flatten_config(tmp_path / "old")
  model.save_pretrained(tmp_path / "new", save_original_format=False)
  config, params = read_folder(tmp_path / "old")
  other, same = read_folder(tmp_path / "new")
  assert other == config
  equal_trees(same, params)
  slopes = read_gradients(model, config)
  family = "Qwen2.5-VL" + ", tied" * tied
  compare(family, config, params, slopes, arrays, prompts, image)


def test_scores_of_the_value_head_and_their_gradients(
  words, rows, tmp_path, read_folder, read_gradients, record_property
):
  prompts, theirs, image = rows
  pad = words.pad_token_id
  answers = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]]
  model = _model(words, tied=False)
  head = torch.nn.Linear(48, 1)
  batch = reference.collate(theirs, answers, "right", pad)
  out = reference.forward(model, batch)
  last = batch["attention_mask"].sum(1) - 1
  hidden = out.hidden_states[-1][torch.arange(len(last)), last]
  expected = head(hidden)[:, 0]
  expected.sum().backward()
  model.save_pretrained(tmp_path)
  of_head = {
    f"v_head.summary.{n}": x.detach().numpy()
    for n, x in head.named_parameters()
  }
  save_file(of_head, tmp_path / "value_head.safetensors")
  config, params = read_folder(tmp_path)
  assert config.value_head
  lengths = np.array([len(answer) for answer in answers])
  mask = np.arange(lengths.max()) < lengths[:, None]
  tokens = np.full(mask.shape, pad, np.int32)
  tokens[mask] = np.concatenate(answers)

  @jax.jit
  def run(params):
    args = params, prompts, jnp.asarray(tokens), jnp.asarray(mask)
    scores = vlm.score(config, *args, image_token=image)
    states = vlm.hidden_states(config, *args, image_token=image)
    return scores.sum(), (scores, states)

  (_, (scores, states)), slope = jax.value_and_grad(run, has_aux=True)(params)
  ending = prompts.tokens.shape[1] - 1 + lengths
  states = np.asarray(states)[np.arange(len(lengths)), ending]
  slopes = dict(pytree.named_leaves(read_gradients(model, config)))
  mine = dict(pytree.named_leaves(slope))
  gaps = {
    "hidden": np.abs(states - hidden.detach().numpy()).max(),
    "score": np.abs(scores - expected.detach().numpy()).max(),
    "gradients": max(
      np.abs(mine[name] - x).max() / np.abs(x).max()
      for name, x in slopes.items()
      if np.any(x)
    ),
  }
  shown = [f"{gap:.0e}" for gap in gaps.values()]
  shown[1] += " (score)"
  record_property("gaps", ["Skywork-VL Reward", *shown, "no text"])
  assert gaps["hidden"] < 1e-4 and gaps["score"] < 1e-4
  assert gaps["gradients"] < 1e-3
  np.testing.assert_allclose(
    mine["value_head/kernel"], head.weight.grad[0], rtol=1e-3, atol=1e-5
  )
