"""What is said of a judge, by samples written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import inputs, sharding
from jaxrl_mm.data import comparisons
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import judging, pairwise
from jaxrl_mm.evaluate.items import Item
from jaxrl_mm.evaluate.judging import JudgingConfig
from jaxrl_mm.experiment import DataConfig, Experiment
from jaxrl_mm.models import config as models
from jaxrl_mm.structs import Completions

PAIR = Item("a", "q", "1", responses=("x", "y"))


def _say(thought, answer):
  return f"<think>response {thought} is better</think><answer>{answer}</answer>"


def _summary(first, second, votes=(1, 3)):
  items = pairwise.both_orders([PAIR])
  rows = [[_say(a, a) for a in row] for row in (first, second)]
  return judging.summarize(items, rows, votes)


def test_votes_and_any_of_k():
  # Right are 1 in the first order and 2 in the other.
  told = _summary("112", "122")
  assert told["accuracy"] == told["voting@1"] == pytest.approx(4 / 6)
  assert told["voting@3"] == 1 and told["any@3"] == 1
  assert told["any@1"] == pytest.approx(4 / 6)
  wrong = _summary("221", "112")
  assert wrong["voting@3"] == 0 and wrong["any@3"] == 1


def test_a_judge_that_always_says_1_is_seen():
  told = _summary("111", "111")
  assert told["accuracy"] == told["voting@3"] == 0.5
  assert told["first"] == 1 and told["agreement"] == told["consistent"] == 0
  fair = _summary("111", "222")
  assert fair["first"] == 0.5 and fair["agreement"] == fair["consistent"] == 1


def test_form_and_analyses_that_lead_elsewhere():
  items = pairwise.both_orders([PAIR])
  rows = [[_say(1, 1), _say(2, 1)], [_say(2, 2), "2"]]
  told = judging.summarize(items, rows, (1, 2))
  assert told["format"] == 0.75 and told["reasoned"] == 0.5


def _setting():
  experiment = Experiment(
    model=models.digits(vocab=80),
    data=DataConfig(
      prompts="digit-pairs/train", prompt_tokens=56, completion_tokens=16
    ),
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return inputs.make_setting(experiment, mesh)


def _always_1(setting, *, samples_per_prompt, temperature):
  """A sampler without a model; every second answer is one word longer."""
  assert temperature == 1.0
  texts = [_say(1, 1), _say("1 ", 1)]
  ids = [tok.completion_ids(setting.tokenizer, text) for text in texts]

  def sample(params, prompts, key):
    del params, key
    rows = len(prompts.tokens) * samples_per_prompt
    tokens = np.full((rows, 16), setting.tokenizer.pad_token_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row in range(rows):
      said = ids[row % 2]
      tokens[row, : len(said)], mask[row, : len(said)] = said, True
    zeros = jnp.zeros(tokens.shape)
    return Completions(jnp.asarray(tokens), jnp.asarray(mask), zeros)

  return sample


def test_all_comparisons_are_asked_in_both_orders(monkeypatch):
  monkeypatch.setattr(judging, "make_sample", _always_1)
  # 10 comparisons in batches of 4: the last is filled up and cut again.
  config = JudgingConfig(pairs=5, batch=4, samples=2, votes=(1, 2))
  source = comparisons.open_source(
    "digit-pairs/test", size=5, seed=0, both_orders=True
  )
  setting = _setting()
  with jax.set_mesh(setting.mesh):
    told = judging.make_judging(setting, config, source)({})
  assert told["accuracy"] == told["any@2"] == 0.5
  assert told["first"] == 1 and told["agreement"] == 0
  long = len(tok.completion_ids(setting.tokenizer, _say(1, 1)))
  assert told["length"] == long + 0.5


@pytest.mark.parametrize(
  "config, message",
  [
    (JudgingConfig(pairs=6), "pairs is 6 and digit-pairs/test has 5"),
    (
      JudgingConfig(pairs=5, samples=3, votes=(1, 5)),
      "votes has 5 and config.judging.samples is 3",
    ),
  ],
)
def test_what_cannot_be_measured(config, message):
  source = comparisons.open_source(
    "digit-pairs/test", size=5, seed=0, both_orders=True
  )
  with pytest.raises(InputError, match=message):
    judging.make_judging(_setting(), config, source)
