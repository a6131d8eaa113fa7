"""Sums of terms, and graders that fail."""

import logging

import numpy as np
import pytest

from jaxrl_mm.rewards.compose import Term, score
from jaxrl_mm.rewards.judge import JudgeDown

ones = lambda completions, answers: np.ones(len(completions), np.float32)


def picky(completions, answers):
  """1 for "good", raises on "bad"."""
  if "bad" in completions:
    raise ValueError("cannot read bad")
  return np.array([c == "good" for c in completions], np.float32)


def test_terms_are_weighed_and_told_apart():
  terms = {"a": Term(ones, 2.0), "b": Term(ones, 0.5, verifiable=False)}
  scores = score(terms, ["x", "y"], ["", ""])
  np.testing.assert_array_equal(scores.total, [2.5, 2.5])
  np.testing.assert_array_equal(scores.verifiable, [2.0, 2.0])
  np.testing.assert_array_equal(scores.terms["b"], [1.0, 1.0])
  assert scores.failures == {"a": 0, "b": 0}
  assert scores.total.dtype == np.float32


def test_a_failing_grader_scores_zero_and_is_counted(caplog):
  texts = ["good", "bad", "good", "poor", "bad"]
  terms = {"picky": Term(picky), "ones": Term(ones)}
  with caplog.at_level(logging.WARNING):
    scores = score(terms, texts, [""] * 5)
  np.testing.assert_array_equal(scores.terms["picky"], [1, 0, 1, 0, 0])
  np.testing.assert_array_equal(scores.total, [2, 1, 2, 1, 1])
  assert scores.failures == {"picky": 2, "ones": 0}
  assert "'picky' failed on 2 of 5" in caplog.text
  assert "cannot read bad" in caplog.text


def test_a_learned_score_that_fails_is_an_error():
  def down(completions, answers):
    raise JudgeDown("gone")

  with pytest.raises(JudgeDown):
    score({"learned": Term(down, verifiable=False)}, ["x"], [""])


def test_no_terms_and_no_rows():
  assert score({}, ["x"], [""]).total.tolist() == [0]
  assert score({"a": Term(ones)}, [], []).total.shape == (0,)
