"""R1V2's hybrid reward."""

from pathlib import Path

import numpy as np
import pytest

from jaxrl_mm.rewards import hybrid
from jaxrl_mm.rewards.compose import score

TRL = np.load(Path(__file__).parents[1] / "golden" / "mpo_grpo.npz")
SCORES = np.array([-15.0, -1.0, 0.0, 6.0], np.float32)


def test_by_default_it_is_the_sum_of_the_paper():
  """Rule, learned score and format of 48 rollouts, and their sum."""
  rule, learned, layout = TRL["adv/rewards_per_func"].T.astype(np.float32)
  fixed = lambda values: lambda completions, answers: values
  terms = hybrid.terms(fixed(learned), rule=fixed(rule), layout=fixed(layout))
  scores = score(terms, [""] * 48, [""] * 48)
  np.testing.assert_allclose(scores.total, TRL["adv/rewards_total"], 1e-5)
  np.testing.assert_allclose(scores.verifiable, rule + layout)


def test_graders_are_those_of_mathematics_and_format():
  zero = lambda completions, answers: np.zeros(len(completions), np.float32)
  texts = ["<think>a</think><answer>1/2</answer>", "<answer>3</answer>"]
  scores = score(hybrid.terms(zero), texts, ["0.5", "3"])
  np.testing.assert_array_equal(scores.total, [2, 1])


@pytest.mark.parametrize(
  "scaling, expected",
  [
    ({}, SCORES),
    ({"clip": (-1, 2)}, [-1, -1, 0, 2]),
    ({"threshold": 0.0}, [0, 0, 1, 1]),
    ({"normalize": (1.0, 2.0)}, [-8, -1, -0.5, 2.5]),
    ({"normalize": (1.0, 2.0), "clip": (-1, 1)}, [-1, -1, -0.5, 1]),
    (
      {"normalize": (1.0, 2.0), "clip": (-1, 1), "threshold": -0.5},
      [0, 0, 1, 1],
    ),
    ({"normalize": "batch"}, (SCORES + 2.5) / SCORES.std()),
  ],
)
def test_rescaling(scaling, expected):
  result = hybrid.rescale(SCORES, **scaling)
  np.testing.assert_allclose(result, expected, 1e-5)
  assert result.dtype == np.float32


def test_a_constant_score_normalises_to_zero():
  result = hybrid.rescale(np.full(4, 3.0), normalize="batch")
  np.testing.assert_array_equal(result, 0)


def test_the_learned_score_is_scaled_within_the_sum():
  learned = lambda completions, answers: SCORES
  terms = hybrid.terms(learned, clip=(-1.0, 1.0))
  scores = score(terms, [""] * 4, ["1"] * 4)
  np.testing.assert_array_equal(scores.total, [-1, -1, 0, 1])
  np.testing.assert_array_equal(scores.verifiable, 0)
