"""A round of MPO on pairs made by hand."""

import json

import jax
import pytest

from jaxrl_mm import inputs, metrics, sharding, weights
from jaxrl_mm.algorithms.calibrate import Band
from jaxrl_mm.data import sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.pairs import Record
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import REWARDS, Experiment
from jaxrl_mm.models import config as models
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train import preference
from jaxrl_mm.train.preference import PreferenceConfig

E = Experiment(model=models.digits())
SOURCE = sources.Digits("train", size=100, seed=0)
CONFIG = PreferenceConfig(
  threshold=1.0,
  band=Band(low=0.1, high=0.2, step=0.5, decay=0.0),
  rounds=2,
  steps=3,
  batch=8,
  micro_batch=4,
  optimizer=OptimizerConfig(learning_rate=1e-3),
)


def _collect(setting, calls):
  """Pairs with score gaps 0, 0.25, ... instead of answers of a model."""

  def collect(*arguments, first, step):
    calls.append((arguments[6].name, first, step))
    write = lambda text: tuple(tok.completion_ids(setting.tokenizer, text))
    records = []
    for n in range(16):
      text = SOURCE[n].demonstration
      ids = write(text), write("<think>1,1</think><answer>99</answer>")
      scores = (n / 4, 0.0)
      records.append(Record(n, (text, "99"), ids, scores, (-40.0, -40.0)))
    return records, {"answer": 0.5, "hallucination": 0.3}

  return collect


def _run(monkeypatch, folder, config, calls):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  setting = inputs.make_setting(E, mesh)
  monkeypatch.setattr(preference, "collect", _collect(setting, calls))
  terms = {"hallucination": REWARDS["hallucination"]}
  with jax.set_mesh(mesh):
    params = weights.initial(E, mesh)
    return preference.run(
      setting, config, params, None, SOURCE, terms, folder, first=64
    )


def test_rounds_train_on_what_passes_a_threshold_that_moves(
  monkeypatch, tmp_path, quick_compile
):
  del quick_compile
  calls = []
  first = _run(monkeypatch, tmp_path / "preference", CONFIG, calls)
  assert calls == [("pairs_1.jsonl", 64, 0), ("pairs_2.jsonl", 64 + 512, 3)]
  rounds = metrics.read_lines(tmp_path / "preference" / "rounds.jsonl")
  # The rate 0.3 is above the band: the threshold rises from 1 by 0.5 a round.
  assert [r["threshold"] for r in rounds] == [1.5, 2.0]
  assert [r["kept"] for r in rounds] == [10, 8]
  lines = metrics.read_lines(tmp_path / "preference" / "metrics.jsonl")
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
  assert [line["threshold"] for line in lines] == 3 * [1.5] + 3 * [2.0]
  assert lines[2]["generation"] < lines[0]["generation"]
  # Finished, it gives back its weights.
  again = _run(monkeypatch, tmp_path / "preference", CONFIG, [])
  same = jax.tree.map(lambda a, b: bool((a == b).all()), first, again)
  assert all(jax.tree.leaves(same))
  saved = (tmp_path / "preference" / "rounds.jsonl").read_text()
  assert [json.loads(x)["step"] for x in saved.splitlines()] == [1, 2]


def test_a_threshold_nothing_reaches_is_named(monkeypatch, tmp_path):
  config = PreferenceConfig(threshold=100.0)
  with pytest.raises(InputError, match="of 16 pairs of round 1 none.*100.00"):
    _run(monkeypatch, tmp_path / "preference", config, [])
