"""Whose language model ends up beside whose projector."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxrl_mm import inputs, sharding
from jaxrl_mm.data import sources
from jaxrl_mm.data.sources import Written
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models import config as models
from jaxrl_mm.train import assemble
from jaxrl_mm.train.assemble import AssembleConfig
from jaxrl_mm.train.sft import SftConfig

SOURCE = sources.Digits("train", size=10, seed=0)
START = {
  name: jnp.float32(0)
  for name in ("vision", "projector", "embedder", "decoder")
}
# What each training adds to the weights, and what each folder holds.
ADDED = {
  "substitute": {"decoder": 1, "embedder": 1},
  "reasoner": {"decoder": 2, "embedder": 2},
  "align": {"projector": 8},
}
FOLDERS = {"tower": 100, "qwen": 200, "qwq": 300}


def _assemble(monkeypatch, tmp_path, config):
  calls = {}

  def train(setting, config, params, source, folder, *, part, before):
    calls[part] = setting, params, source, before
    return params | {k: params[k] + v for k, v in ADDED[part].items()}

  def load(setting, folder, parts):
    calls[folder] = setting
    return {name: jnp.float32(FOLDERS[folder]) for name in parts}

  monkeypatch.setattr(assemble.sft, "run", train)
  monkeypatch.setattr(assemble, "_load", load)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  setting = inputs.make_setting(Experiment(model=models.digits()), mesh)
  whole = assemble.run(setting, config, dict(START), SOURCE, tmp_path)
  return {name: float(x) for name, x in whole.items()}, calls


def test_the_reasoner_takes_the_place_of_the_substitute(monkeypatch, tmp_path):
  config = AssembleConfig(text=SftConfig(steps=5))
  whole, calls = _assemble(monkeypatch, tmp_path, config)
  # The reasoner is the substitute trained on, 1 + 2.
  assert whole == {"vision": 0, "projector": 8, "embedder": 3, "decoder": 3}
  assert list(calls) == ["substitute", "reasoner", "align"]
  # The projector has met the substitute alone.
  assert float(calls["align"][1]["decoder"]) == 1
  assert [before for *_, before in calls.values()] == [0, 5, 10]


def test_language_models_learn_from_text_and_read_different_questions(
  monkeypatch, tmp_path
):
  config = AssembleConfig(text=SftConfig())
  _, calls = _assemble(monkeypatch, tmp_path, config)
  for part in ("substitute", "reasoner"):
    setting, _, source, _ = calls[part]
    assert isinstance(source, Written) and setting.layout.pictures is None
  setting, _, source, _ = calls["align"]
  assert source is SOURCE and setting.layout.pictures is not None
  assert calls["substitute"][0].seed != calls["reasoner"][0].seed


def test_parts_come_from_their_folders(monkeypatch, tmp_path):
  config = AssembleConfig(vision="tower", substitute="qwen", reasoner="qwq")
  whole, calls = _assemble(monkeypatch, tmp_path, config)
  assert whole == {
    "vision": 100,
    "projector": 8,
    "embedder": 300,
    "decoder": 300,
  }
  assert calls["align"][3] == 0
  assert float(calls["align"][1]["decoder"]) == 200
  # No two language models at a time.
  assert list(calls) == ["tower", "qwen", "align", "qwq"]


@pytest.mark.parametrize("missing", ["substitute", "reasoner"])
def test_a_language_model_from_nowhere_is_named(missing):
  config = AssembleConfig(substitute="a", reasoner="b")
  assemble.check(config)
  with pytest.raises(InputError, match="no folder for a language model"):
    assemble.check(dataclasses.replace(config, **{missing: ""}))


@pytest.mark.parametrize(
  "folders, given",
  [
    ({}, {}),
    ({"vision": "a"}, {"vision": "a"}),
    ({"substitute": "a"}, {"embedder": "a", "decoder": "a"}),
    (
      {"vision": "a", "substitute": "b", "reasoner": "a"},
      {"vision": "a", "embedder": "a", "decoder": "a"},
    ),
  ],
)
def test_what_folders_give_to_the_whole(monkeypatch, folders, given):
  read = lambda path, model, mesh, parts: dict.fromkeys(parts, str(path))
  monkeypatch.setattr(assemble, "load_params", read)
  sizes = models.digits(), sharding.make_mesh()
  assert assemble.load(AssembleConfig(**folders), *sizes) == given


@pytest.mark.parametrize(
  "part, reasoner, kept",
  [
    ("substitute", "", {"vision", "projector", "embedder", "decoder"}),
    ("substitute", "a", {"vision", "projector"}),
    ("reasoner", "", {"embedder", "decoder"}),
    ("align", "", {"vision", "projector"}),
  ],
)
def test_what_the_whole_keeps_of_a_training(part, reasoner, kept):
  config = AssembleConfig(reasoner=reasoner)
  assert assemble.taken(config, part, START).keys() == kept
