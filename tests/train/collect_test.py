"""Which two answers become a pair, and what the file remembers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import inputs, metrics, preemption, sharding
from jaxrl_mm.data import comparisons, sets, sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.pairs import Given
from jaxrl_mm.experiment import REWARDS, Experiment
from jaxrl_mm.models import config as models
from jaxrl_mm.preemption import Preempted
from jaxrl_mm.structs import Completions
from jaxrl_mm.train import collect
from jaxrl_mm.train.collect import CollectConfig

CONFIG = CollectConfig(prompts=16, prompts_per_step=8, samples_per_prompt=3)


@pytest.mark.parametrize(
  "pick, two", [("widest", (2, 1)), ("closest", (0, 3)), ("first", (0, 1))]
)
def test_of_several_answers_two_are_picked(pick, two):
  scores = np.array([0.0, -2.0, 3.0, 1.0])
  right, wrong = np.array([0, 2]), np.array([1, 3])
  assert collect._pick(scores, right, wrong, pick) == two


def _answers(setting, source):
  """Right, wrong, and right but cut off; every fourth question: all right."""

  def ask(params, prompts, key):
    del params, key
    rows = []
    for number in np.asarray(prompts.group).tolist():
      right = source[number].demonstration
      wrong = "<think>1,1</think><answer>99</answer>"
      texts = [right, right if number % 4 == 0 else wrong, right]
      ids = [tok.completion_ids(setting.tokenizer, text) for text in texts]
      rows += [ids[0], ids[1], ids[2][:-1]]
    tokens = np.zeros((len(rows), 14), np.int32)
    for row, one in zip(tokens, rows):
      row[: len(one)] = one
    tokens = jnp.asarray(tokens)
    return Completions(tokens, tokens != 0, jnp.zeros(tokens.shape))

  return ask


def test_pairs_are_collected_once(monkeypatch, tmp_path):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  setting = inputs.make_setting(Experiment(model=models.digits()), mesh)
  source = sources.Digits("train", size=100, seed=0)
  asked = []
  sample = _answers(setting, source)

  def counted(*args):
    asked.append(1)
    return sample(*args)

  logp = lambda params, prompts, tokens, mask: -jnp.sum(mask, 1) * 1.0
  monkeypatch.setattr(collect, "make_sample", lambda *_, **__: counted)
  monkeypatch.setattr(collect, "make_logp", lambda *_: logp)
  terms = {name: REWARDS[name] for name in ("answer", "hallucination")}
  again = lambda folder: collect.collect(
    setting,
    CONFIG,
    {},
    None,
    source,
    terms,
    folder / "pairs_1.jsonl",
    first=8,
    step=5,
  )
  with jax.set_mesh(mesh):
    records, told = again(tmp_path)
    assert again(tmp_path) == (records, told)
    assert len(asked) == 2
    # Ended after the first of its two batches.
    near = iter([False, True])
    monkeypatch.setattr(preemption, "is_near", lambda: next(near, False))
    with pytest.raises(Preempted, match="kept 1 of 2 batches"):
      again(tmp_path / "cut")
    assert again(tmp_path / "cut") == (records, told)
  assert len(asked) == 4
  assert [r.index for r in records] == [n for n in range(8, 24) if n % 4]
  for record in records:
    assert record.texts[0] == source[record.index].demonstration
    assert "99" in record.texts[1]
    lengths = [-float(len(ids)) for ids in record.tokens]
    assert list(record.reference_logp) == lengths
  assert told["answer"] == pytest.approx((12 * 2 + 4 * 3) / 48)
  assert 0 < told["hallucination"] < 1 / 3
  samples = metrics.read_lines(tmp_path / "samples.jsonl")
  assert [s["step"] for s in samples] == 6 * [5]
  assert [s["group"] for s in samples] == 3 * [8] + 3 * [9]
  assert ["image" in s for s in samples] == 2 * [True, False, False]
  assert [s["terms"]["answer"] for s in samples] == [1, 1, 1, 1, 0, 1]
  assert all(s["terms"]["score"] == 0 for s in samples)


def test_pairs_that_are_given_are_scored_and_nobody_is_asked(
  monkeypatch, tmp_path
):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  e = Experiment(model=models.digits())
  texts = comparisons.digit_pair_texts()
  setting = dataclasses.replace(
    inputs.make_setting(e, mesh), tokenizer=tok.build(texts)
  )
  given = Given(sets.open_pairs("digit-pairs/train", size=6, seed=0))
  # The log-prob and the score of a completion: its length, and minus that.
  of_rows = lambda sign: (
    lambda params, prompts, tokens, mask: (
      sign * mask.sum(axis=1).astype(jnp.float32)
    )
  )
  monkeypatch.setattr(collect, "make_logp", lambda *args: of_rows(1))
  monkeypatch.setattr(collect, "make_score", lambda *args: of_rows(-1))
  take = lambda first: collect.collect(
    setting,
    CollectConfig(prompts=4, prompts_per_step=2),
    {},
    {},
    given,
    {},
    tmp_path / f"pairs_{first}.jsonl",
    first=first,
    step=1,
  )
  records, told = take(4)
  assert told == {} and [r.index for r in records] == [0, 1, 4, 5]
  for record in records:
    lengths = tuple(len(ids) for ids in record.tokens)
    assert record.reference_logp == lengths
    assert record.scores == tuple(-n for n in lengths)
    made = sets.open_pairs("digit-pairs/train", size=6, seed=0)[record.index]
    assert record.texts == (made.better, made.worse)
    assert given[record.index].question == made.question
  monkeypatch.setattr(collect, "_take", None)
  assert take(4)[0] == records
