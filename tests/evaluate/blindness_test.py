"""Models that look and models that do not, made by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import inputs, sharding
from jaxrl_mm.data import sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.evaluate import blindness
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models import config as models
from jaxrl_mm.structs import Completions, Patches


def test_partners_have_as_many_image_tokens():
  found = blindness.partners(np.array([3, 4, 3, 5, 4, 3]))
  np.testing.assert_array_equal(found, [2, 4, 5, 3, 1, 0])


def test_black_patches_stay_where_they_are():
  seen = Patches(*(np.ones(n, np.int32) for n in (3, 4, 5, 6)))
  black = blindness.blacken(seen)
  assert not black.pixels.any()
  assert black[1:] == seen[1:]
  assert not blindness.blacken(np.ones((1, 2, 8, 8, 3), np.uint8)).any()


@pytest.fixture
def setting():
  mesh = sharding.make_mesh()
  return inputs.make_setting(Experiment(model=models.digits()), mesh)


def test_a_model_of_text_alone_is_not_asked():
  text = dataclasses.replace(models.digits(), vision=None)
  setting = inputs.make_setting(Experiment(model=text), sharding.make_mesh())
  source = sources.Sums("test", size=4, seed=0)
  assert blindness.make_blindness(setting, source, 4, 4)({}) == {}


def _told(setting, text_of):
  """A model that writes `text_of(sum of the picture)`, with log-probs -1."""

  def ask(params, prompts, key):
    del params, key
    light = np.asarray(prompts.images, np.int64).sum((1, 2, 3, 4))
    ids = [tok.completion_ids(setting.tokenizer, text_of(x)) for x in light]
    tokens = np.zeros((len(ids), 14), np.int32)
    for row, one in zip(tokens, ids):
      row[: len(one)] = one
    tokens = jnp.asarray(tokens)
    return Completions(tokens, tokens != 0, jnp.zeros(tokens.shape))

  return ask


@pytest.mark.parametrize(
  "text_of, blind, swapped, gap",
  [
    (lambda light: "<answer>7</answer>", 1, 1, 0),
    (lambda light: f"<answer>{light % 1000}</answer>", 0, None, 2),
  ],
)
def test_who_looks(monkeypatch, setting, text_of, blind, swapped, gap):
  ask = _told(setting, text_of)

  def logp(params, prompts, tokens, mask):
    dark = jnp.sum(prompts.images.astype(jnp.int32), (1, 2, 3, 4)) == 0
    return -jnp.sum(mask, 1) * jnp.where(dark, 1.0 + gap, 1.0)

  monkeypatch.setattr(blindness, "make_sample", lambda *_, **__: ask)
  monkeypatch.setattr(blindness, "make_logp", lambda *_: logp)
  source = sources.Digits("test", size=16, seed=0)
  with jax.set_mesh(setting.mesh):
    found = blindness.make_blindness(setting, source, 16, 16)({})
  assert found["blind_same"] == blind
  assert found["blind_gap"] == pytest.approx(gap)
  if swapped is None:
    assert found["blind_swapped_same"] < 0.3
  else:
    assert found["blind_swapped_same"] == swapped
