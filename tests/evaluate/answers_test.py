"""What the sampler is given, and what comes back for each question."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxrl_mm import inputs, sharding
from jaxrl_mm.data import loader, sources, templates
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.loader import Layout
from jaxrl_mm.data.patches import Patching
from jaxrl_mm.evaluate import answers
from jaxrl_mm.evaluate.answers import Drawing
from jaxrl_mm.evaluate.items import Item
from jaxrl_mm.evaluate.run import Ask
from jaxrl_mm.experiment import DataConfig, Experiment
from jaxrl_mm.models import vlm
from jaxrl_mm.models.config import (
  DecoderConfig,
  ModelConfig,
  QwenVisionConfig,
  digits,
)
from jaxrl_mm.structs import Completions
from jaxrl_mm.train import collect
from jaxrl_mm.train.loop import LoopConfig, Setting

pytestmark = pytest.mark.usefixtures("quick_compile")

QUESTION = "What is the sum?"


def png(width, height=8, seed=0):
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
  buffer = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
  return buffer.getvalue()


def ask(row, *pictures, **fields):
  return Ask(row, QUESTION, Item(str(row), QUESTION, "", pictures, **fields))


@pytest.fixture(scope="module")
def mesh():
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  with jax.set_mesh(mesh):
    yield mesh


@pytest.fixture(scope="module")
def internvl(mesh):
  data = DataConfig(prompt_tokens=200, completion_tokens=6)
  return inputs.make_setting(Experiment(model=digits(), data=data), mesh)


@pytest.fixture(scope="module")
def qwen(mesh):
  """A tiny Qwen2.5-VL with a value head, and its weights."""
  model = ModelConfig(
    vision=QwenVisionConfig(
      layers=1,
      width=16,
      heads=2,
      mlp=32,
      full_layers=(0,),
      patch_size=2,
      window=4,
    ),
    decoder=DecoderConfig(
      layers=1,
      width=16,
      heads=2,
      kv_heads=1,
      head_dim=8,
      mlp=32,
      vocab=64,
      rope_sections=(1, 1, 2),
    ),
    dtype="float32",
    value_head=True,
  )
  tokenizer = tok.build(sources.digits_texts())
  markup = templates.QWEN
  words = [markup.image, markup.video, markup.start, markup.end]
  tokenizer.add_tokens(words, special_tokens=True)
  layout = Layout(
    200,
    6,
    Patching(windows=0, min_pixels=16, max_pixels=400, patch_size=2, window=4),
    markup,
  )
  setting = Setting(
    model=model,
    tokenizer=tokenizer,
    image_token=templates.image_token(tokenizer, markup),
    layout=layout,
    mesh=mesh,
    loop=LoopConfig(),
    seed=0,
  )
  return setting, _weights(model)


def _weights(model):
  return jax.jit(lambda key: vlm.init(model, key))(jax.random.key(1))


def examples(asks):
  return [answers._example(a, a.text) for a in asks]


def test_room_for_the_pictures_there_are(internvl):
  none = answers.encode(internvl, examples([ask(0), ask(1)]))
  assert none.images is None
  assert none.tokens.shape == (2, 64)
  one = answers.encode(internvl, examples([ask(0, png(8)), ask(1)]))
  most = answers.encode(internvl, examples([ask(0, png(24), png(8, seed=1))]))
  tiles = internvl.layout.pictures
  assert one.images.shape[1] == tiles.room
  assert most.images.shape[1] == 2 * tiles.room
  assert not one.images[1].any()


def test_a_prompt_is_cut_but_not_changed(internvl):
  (example,) = examples([ask(0, png(24))])
  found = answers.encode(internvl, [example])
  whole = loader.encode_prompt(example, 0, internvl.tokenizer, internvl.layout)
  assert found.tokens.shape == (1, 64)
  assert whole.mask.sum() == found.mask.sum() <= 64
  np.testing.assert_array_equal(found.tokens[0], whole.tokens[-64:])
  np.testing.assert_array_equal(found.images[0], whole.images)


def test_windows_are_as_many_as_are_needed(qwen):
  setting, _ = qwen
  asks = [ask(0, png(16, 8), png(12, 12, seed=1)), ask(1, png(8, 8))]
  prompts = answers.encode(setting, examples(asks))
  # Of 8 pixels a side: 2 x 1 and 2 x 2 windows, and one.
  assert np.sum(prompts.images.frame >= 0, axis=1).tolist() == [6, 1]
  assert prompts.positions.shape == (2, 64, 3)
  video = np.zeros((4, 8, 8, 3), np.uint8)
  moving = examples([ask(0)])[0]._replace(pictures=(video,))
  prompts = answers.encode(setting, [moving])
  assert np.sum(prompts.images.frame >= 0) == 2
  assert prompts.images.pixels.shape[3] == 2


def test_answers_are_the_models(internvl, greedy):
  """Greedy answers of a batch are those each question gets by itself."""
  params = _weights(internvl.model)
  asks = [ask(0, png(8)), ask(1, png(16, seed=5)), ask(2)]
  found = answers.make_answer(internvl, params, Drawing())(asks)
  (only,) = examples(asks[1:2])
  row = loader.encode_prompt(only, 0, internvl.tokenizer, internvl.layout)
  prompts = jax.tree.map(lambda x: x[None], row)
  drawn = greedy(internvl.model, params, prompts, internvl.image_token, 6)
  end = internvl.tokenizer.eos_token_id
  ids = drawn[0].tolist()
  ids = ids[: ids.index(end)] if end in ids else ids
  assert found[1] == tok.decode(internvl.tokenizer, [ids])
  assert [len(texts) for texts in found] == [1, 1, 1]


def test_a_conversation_is_asked_with_what_was_said(internvl):
  alone, later = ask(0), ask(0)._replace(earlier=(QUESTION, "3") * 10)
  rows = [answers.encode(internvl, examples([a])) for a in (alone, later)]
  assert [int(row.mask.sum()) for row in rows] == [13, 13 + 10 * 16]
  assert answers.fits(internvl, later)
  assert not answers.fits(internvl, ask(0)._replace(earlier=(QUESTION,) * 20))


def test_draws_depend_on_the_seed_and_the_row(internvl, monkeypatch):
  seen = []

  def make_sample(setting, *, samples_per_prompt, **drawing):
    def sample(params, prompts, key):
      seen.append(jax.random.key_data(key).tolist())
      # The number of the row, twice; then of the next one.
      rows = np.arange(len(prompts.mask) * samples_per_prompt)
      ids = setting.tokenizer.convert_tokens_to_ids([*"0123456789"])
      tokens = jnp.array(ids)[rows][:, None]
      return Completions(tokens, tokens > 0, np.zeros(tokens.shape))

    return sample

  monkeypatch.setattr(answers, "make_sample", make_sample)
  drawing = Drawing(samples=2, temperature=1.0)
  answer = answers.make_answer(internvl, {}, drawing)
  assert answer([ask(0), ask(1)]) == [["0", "1"], ["2", "3"]]
  answer([ask(2), ask(3)])
  answer([ask(0)])
  assert seen[0] == seen[2] != seen[1]
  answer([ask(0)._replace(earlier=("a", "b"))])
  assert seen[3] not in seen[:3]


def test_a_scalar_model_prefers_what_it_scores_higher(qwen, mesh):
  setting, params = qwen
  pairs = [("the sum", "What is"), ("What is", "the sum"), ("sum", "sum")]
  asks = [ask(i, png(8), responses=pair) for i, pair in enumerate(pairs)]
  found = answers.make_preference(setting, params)(asks)
  row = sharding.to_device(answers.encode(setting, examples(asks[:1])), mesh)
  scores = [_score(setting, params, row, text) for text in pairs[0]]
  better, worse = (1, 2) if scores[0] > scores[1] else (2, 1)
  assert found == [
    [f"<answer>{better}</answer>"],
    [f"<answer>{worse}</answer>"],
    [""],
  ]


def _score(setting, params, row, text):
  ids = setting.tokenizer.encode(f"{text}<|im_end|>\n")
  tokens = jnp.array([ids])
  return collect.make_score(setting, 1, 1)(
    params, row, tokens, tokens >= 0
  ).item()
