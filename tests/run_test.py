"""What a run finds wrong before its first stage."""

import dataclasses

import pytest

from jaxrl_mm import run, sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models import config as models

DEMO = Experiment(model=models.digits())


def test_a_small_vocabulary_is_refused():
  small = dataclasses.replace(DEMO, model=models.digits(vocab=8))
  with pytest.raises(InputError, match="vocab is 8"):
    run.make_setting(small, sharding.make_mesh())


def test_an_unknown_stage_is_named():
  with pytest.raises(InputError, match="'dpo'; known are .*sft.*policy"):
    run.check_stages(dataclasses.replace(DEMO, stages=("sft", "dpo")))


def test_several_pictures_have_room():
  data = dataclasses.replace(DEMO.data, max_tiles=3, max_pictures=2)
  layout = run.make_layout(dataclasses.replace(DEMO, data=data))
  assert layout.pictures.max_pictures == 2
  assert layout.pictures.room == 2 * (3 + 1)


def test_a_model_of_text_alone_needs_no_image_tokens():
  model = dataclasses.replace(models.digits(), vision=None)
  setting = run.make_setting(
    dataclasses.replace(DEMO, model=model), sharding.make_mesh()
  )
  assert setting.layout.pictures is None
  assert setting.image_token == -1


def test_the_policy_is_evaluated_during_its_stage(monkeypatch):
  """On one batch of held-out questions, beside the blindness."""
  asked = []

  def make_evaluator(setting, config, source, terms):
    asked.append((config.size, config.batch, source, list(terms)))
    return lambda params: {"answer": params["right"]}

  monkeypatch.setattr(run, "make_evaluator", make_evaluator)
  probe = run.make_probe(
    run.Run(
      DEMO,
      setting=None,
      sources=run.Sources("held out", "demonstrations", "prompts"),
      probe=lambda params: {"blind_same": 0.25},
      workdir=None,
    )
  )
  assert asked == [(512, 512, "held out", ["answer"])]
  assert probe({"right": 0.5}) == {"held_out_accuracy": 0.5, "blind_same": 0.25}
