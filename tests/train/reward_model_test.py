"""Two data stages on pairs made by hand."""

import math

import jax
import numpy as np
import pytest

from jaxrl_mm import inputs, metrics, sharding, weights
from jaxrl_mm.data import sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.pairs import Record
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models import config as models
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train import reward_model
from jaxrl_mm.train.collect import CollectConfig
from jaxrl_mm.train.reward_model import RewardModelConfig

E = Experiment(model=models.digits())
SOURCE = sources.Digits("train", size=100, seed=0)
CONFIG = RewardModelConfig(
  collect=CollectConfig(prompts=32),
  hard_below=1.0,
  steps=4,
  batch=8,
  micro_batch=8,
  optimizer=OptimizerConfig(learning_rate=1e-2, trainable="(?!vision/).*"),
)


@pytest.fixture(scope="module")
def setting():
  return inputs.make_setting(E, sharding.make_mesh(devices=jax.devices()[:1]))


def _record(setting, index, gap):
  texts = SOURCE[index].demonstration, "<think>1,1</think><answer>99</answer>"
  ids = tuple(tuple(tok.completion_ids(setting.tokenizer, x)) for x in texts)
  return Record(index, texts, ids, (gap, 0.0), (-1.0, -1.0))


def _collect(setting, calls, gaps):
  """Pairs with the given gaps in place of a model's answers."""

  def collect(*arguments, first, step, pick):
    scored = arguments[3] is not None
    calls.append((arguments[6].name, first, step, pick, scored))
    return [_record(setting, first + i, g) for i, g in enumerate(gaps)], {}

  return collect


def test_two_data_stages(setting, monkeypatch, tmp_path, quick_compile):
  del quick_compile
  calls, seen = [], []
  gaps = (-1.0, 0.5, 0.99, 1.0, 3.0, 5.0)
  monkeypatch.setattr(reward_model, "collect", _collect(setting, calls, gaps))
  monkeypatch.setattr(
    reward_model,
    "PairSource",
    lambda known, source: seen.append(known) or pair_source(known, source),
  )

  def train():
    with jax.set_mesh(setting.mesh):
      policy = weights.initial(E, setting.mesh)
      return policy, reward_model.run(
        setting, CONFIG, policy, SOURCE, {}, tmp_path / "reward_model"
      )

  policy, trained = train()
  # The second stage asks new questions, scored by the first stage's model.
  assert calls == [
    ("pairs_1.jsonl", 0, 0, "widest", False),
    ("pairs_2.jsonl", 32, 4, "closest", True),
  ]
  # It adds the pairs that model finds hard.
  assert [len(known) for known in seen] == [6, 6 + 3]
  lines = metrics.read_lines(tmp_path / "reward_model" / "metrics.jsonl")
  assert [line["step"] for line in lines] == list(range(1, 9))
  # Bradley-Terry starts at log 2, for the new head knows nothing.
  assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.3)
  assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
  same = lambda a, b: all(
    jax.tree.leaves(jax.tree.map(np.array_equal, jax.device_get(a), b))
  )
  assert same(trained["vision"], policy["vision"])
  assert not same(trained["decoder"], policy["decoder"])
  # Finished, it gives back its weights.
  assert same(train()[1], trained)


pair_source = reward_model.PairSource


def test_without_pairs_it_says_so(setting, monkeypatch, tmp_path):
  monkeypatch.setattr(reward_model, "collect", _collect(setting, [], ()))
  with jax.set_mesh(setting.mesh):
    policy = weights.initial(E, setting.mesh)
    with pytest.raises(InputError, match="no question had both right and"):
      reward_model.run(setting, CONFIG, policy, SOURCE, {}, tmp_path)


@pytest.mark.parametrize(
  "gaps, share", [((1.0, 0.2, -0.3, 0.0), 0.5), ((), math.nan)]
)
def test_accuracy_on_held_out_pairs(
  setting, monkeypatch, tmp_path, gaps, share
):
  monkeypatch.setattr(reward_model, "collect", _collect(setting, [], gaps))
  found = reward_model.pair_accuracy(
    setting, CONFIG, {}, {}, SOURCE, {}, tmp_path
  )
  assert found == pytest.approx(share, nan_ok=True)
