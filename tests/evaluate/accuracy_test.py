"""The share of right answers, with a model that is told what to say."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_mm import inputs, sharding
from jaxrl_mm.data import sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.evaluate import accuracy
from jaxrl_mm.evaluate.accuracy import EvaluationConfig
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models import config as models
from jaxrl_mm.rewards import format as form
from jaxrl_mm.rewards import math as maths
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.structs import Completions


def test_counts_the_right_answers_of_all_batches(monkeypatch):
  mesh = sharding.make_mesh()
  setting = inputs.make_setting(Experiment(model=models.digits()), mesh)
  source = sources.Digits("test", size=32, seed=0)
  # Right for every question but each fourth; every second without its tags.
  written = np.full((32, 16), setting.tokenizer.pad_token_id, np.int32)
  for i in range(32):
    answer = "99" if i % 4 == 0 else source[i].answer
    text = f"<think></think><answer>{answer}</answer>"
    ids = tok.completion_ids(setting.tokenizer, text)
    ids = ids[1:] if i % 2 else ids
    written[i, : len(ids)] = ids

  def told(params, prompts, key):
    del params, key
    tokens = jnp.asarray(written)[prompts.group]
    return Completions(tokens, tokens != 0, jnp.zeros(tokens.shape))

  def make_sample(setting, *, samples_per_prompt, temperature):
    del setting
    assert (samples_per_prompt, temperature) == (1, 0)
    return told

  monkeypatch.setattr(accuracy, "make_sample", make_sample)
  terms = {"answer": Term(maths.exact), "format": Term(form.r1)}
  config = EvaluationConfig(size=32, batch=16)
  with jax.set_mesh(mesh):
    evaluate = accuracy.make_evaluator(setting, config, source, terms)
    assert evaluate({}) == {"answer": 0.75, "format": 0.5}
