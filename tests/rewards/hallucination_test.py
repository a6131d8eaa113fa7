"""False claims counted by hand, and POPE's numbers on six replies."""

import numpy as np
import pytest

from jaxrl_mm.rewards import compose, hallucination
from jaxrl_mm.rewards.compose import Term


@pytest.mark.parametrize(
  "thought, facts, share",
  [
    ("3+8=11", "3,8", 0),
    ("3+9=12", "3,8", 1 / 2),
    ("3,3,8", "3,8", 1 / 3),  # one three too many
    ("8,3", "3,8", 0),  # in any order
    ("1,2", "3,8,8", 1),
    ("", "3,8", 0),
  ],
)
def test_share_of_false_claims(thought, facts, share):
  text = f"<think>{thought}</think><answer>77</answer>"
  assert hallucination.false_claims([text], [facts]) == np.float32(share)


def test_a_thought_cut_off_is_read_and_no_thought_claims_nothing():
  got = hallucination.false_claims(["<think>4,5", "45"], ["4,6", "4,6"])
  np.testing.assert_array_equal(got, [0.5, 0])


def test_the_term_compares_with_the_facts():
  terms = {"false": Term(hallucination.false_claims, weight=0.0, truth="facts")}
  scores = compose.score(terms, ["<think>1,2</think>"], ["9"], ["1,3"])
  assert scores.terms["false"] == 0.5 and scores.total == 0


def test_pope():
  replies = ["Yes.", "no", "yes", "Well, no: yes", "no", "I cannot tell"]
  truths = ["yes", "yes", "no", "no", "no", "no"]
  got = hallucination.yes_no(replies, truths)
  assert got["accuracy"] == pytest.approx(2 / 6)
  assert got["precision"] == pytest.approx(1 / 3)
  assert got["recall"] == pytest.approx(1 / 2)
  assert got["f1"] == pytest.approx(0.4)
  assert got["yes_ratio"] == pytest.approx(3 / 6)
  assert got["hallucination"] == pytest.approx(2 / 4)
