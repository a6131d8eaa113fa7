import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm.models import config, qwen_vit, vlm
from jaxrl_mm.models.config import QwenVisionConfig
from jaxrl_mm.structs import Patches, Prompts

pytestmark = pytest.mark.usefixtures("quick_compile")

IMAGE = 5


@pytest.fixture(scope="module")
def model(tiny):
  vision = QwenVisionConfig(
    layers=2, width=16, heads=2, mlp=24, full_layers=(1,), patch_size=2,
    window=2,
  )  # fmt: skip
  decoder = dataclasses.replace(tiny.decoder, rope_sections=(2, 3, 3))
  return dataclasses.replace(
    tiny, vision=vision, decoder=decoder, value_head=True
  )


@pytest.fixture(scope="module")
def params(model):
  """By numpy, at once; `vlm.init` takes seconds to compile."""
  shapes = jax.eval_shape(lambda key: vlm.init(model, key), jax.random.key(0))
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape, np.float32))
  return jax.tree.map(draw, shapes)


def _images(rows, windows, frames=1, seed=0):
  """Rows of full windows of one token each, all in one picture."""
  rng = np.random.default_rng(seed)
  pixels = rng.integers(256, size=(rows, windows, 4, frames, 2, 2, 3))
  corner = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
  place = corner + 2 * np.arange(windows)[:, None, None] * np.array([0, 1])
  return Patches(
    pixels=jnp.asarray(pixels, jnp.uint8),
    place=jnp.asarray(np.tile(place, (rows, 1, 1, 1)), jnp.int32),
    frame=jnp.zeros((rows, windows), jnp.int32),
    order=jnp.tile(jnp.arange(windows), (rows, 1)),
  )


def test_normalize_standardises_bytes_by_clip_statistics():
  got = qwen_vit.normalize(
    jnp.array([0, 128, 255], jnp.uint8), jnp.dtype("float32")
  )
  expected = [
    (0 - 0.48145466) / 0.26862954,
    (128 / 255 - 0.4578275) / 0.26130258,
    (1 - 0.40821073) / 0.27577711,
  ]
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_both_kinds_of_attention_against_loops():
  """Nine windows do not divide by how many ask at a time."""
  windows = qwen_vit.WINDOWS_AT_A_TIME + 1
  rng = np.random.default_rng(0)
  q, k, v = rng.standard_normal((3, 2, windows, 4, 2, 4), np.float32)
  present = rng.random((2, windows, 4)) < 0.7
  frame = rng.integers(2, size=(2, windows))
  wide = jax.tree.map(jnp.asarray, (q, k, v, present))
  in_window = np.asarray(qwen_vit.attend_in_windows(*wide))
  in_picture = np.asarray(
    qwen_vit.attend_in_pictures(*wide, jnp.asarray(frame))
  )
  for b, w, n in zip(*np.nonzero(present)):
    same = present[b] & (frame[b] == frame[b, w])[:, None]
    for got, seen in (
      (in_window, present[b] & (np.arange(windows) == w)[:, None]),
      (in_picture, same),
    ):
      for h in range(2):
        weights = np.exp(k[b, :, :, h][seen] @ q[b, w, n, h] / 2)
        expected = weights @ v[b, :, :, h][seen] / weights.sum()
        np.testing.assert_allclose(got[b, w, n, h], expected, atol=1e-5)


def test_a_still_picture_equals_itself_shown_twice(model, params):
  one = _images(1, 3)
  two = one._replace(pixels=jnp.repeat(one.pixels, 2, axis=3))
  encode = lambda x: qwen_vit.encode(model, params, x)
  once, twice = jax.jit(lambda: (encode(one), encode(two)))()
  np.testing.assert_allclose(once, twice, atol=1e-5)


def test_what_is_absent_or_of_another_picture_changes_nothing(model, params):
  """The third window is another picture, the fourth is not there."""
  images = _images(1, 4)._replace(frame=jnp.array([[0, 0, 1, -1]]))
  images = images._replace(place=images.place.at[:, 3].set(-1))
  noise = _images(1, 4, seed=1).pixels
  other = images._replace(pixels=images.pixels.at[:, 2:].set(noise[:, 2:]))
  encode = jax.jit(qwen_vit.encode, static_argnums=0)
  before, after = (encode(model, params, x) for x in (images, other))
  np.testing.assert_array_equal(before[:, :2], after[:, :2])
  assert not np.allclose(before[:, 2], after[:, 2])


def test_image_tokens_follow_their_order(model, params):
  images = _images(1, 3)
  turned = images._replace(order=jnp.array([[2, 0, 1]]))
  encode = jax.jit(qwen_vit.encode, static_argnums=0)
  straight = encode(model, params, images)
  np.testing.assert_array_equal(
    encode(model, params, turned), straight[:, jnp.array([2, 0, 1])]
  )


def test_rows_of_one_group_share_a_picture(model, params):
  """Three rows of two groups, the tower running over one row at a time."""
  images = _images(2, 2)
  rows = jax.tree.map(lambda x: x[jnp.array([0, 1, 0])], images)
  run = jax.jit(
    lambda rows: (
      vlm.encode_distinct(model, params, rows, jnp.array([7, 3, 7]), 3),
      vlm.encode_images(model, params, rows),
    )
  )
  np.testing.assert_allclose(*run(rows), atol=1e-5)


def test_the_score_is_of_the_last_real_token(model, params):
  tokens = jnp.array([[0, IMAGE, IMAGE, 9], [IMAGE, IMAGE, 7, 8]])
  places = jnp.tile(jnp.arange(4)[:, None], (2, 1, 3))
  prompts = Prompts(tokens, tokens > 0, _images(2, 2), jnp.arange(2), places)
  answers = jnp.array([[11, 12, 13], [14, 15, 16]])
  mask = jnp.array([[True, True, False], [True, True, True]])

  @jax.jit
  def run(tokens):
    args = (model, params, prompts, tokens, mask)
    return [f(*args, image_token=IMAGE) for f in (vlm.score, vlm.hidden_states)]

  got, hidden = run(answers)
  np.testing.assert_array_equal(got, run(answers.at[0, 2].set(31))[0])
  head = params["value_head"]
  for row, last in ((0, 5), (1, 6)):
    expected = hidden[row, last] @ head["kernel"] + head["bias"][0]
    np.testing.assert_allclose(got[row], expected, rtol=1e-4)


def test_the_published_tower_has_four_full_layers():
  vision = config.qwen2_5_vl_7b().vision
  assert (vision.layers, vision.head_dim) == (32, 80)
  assert vision.full_layers == (7, 15, 23, 31)
