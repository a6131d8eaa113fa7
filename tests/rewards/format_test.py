"""Format rules against the cases of R1-Reward."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxrl_mm.rewards import format as form

CASES = json.loads(
  (Path(__file__).parents[1] / "golden/stable_reinforce.json").read_text()
)["string_cases"]["verify_format"]["pairs"]


@pytest.mark.parametrize("text, expected", CASES)
def test_strict_is_the_released_rule(text, expected):
  np.testing.assert_array_equal(form.r1([text], [""]), [float(expected)])


@pytest.mark.parametrize(
  "text, expected",
  [
    (" <think>a</think>\n\n<answer>1</answer> \n", 1),
    ("<think>a</think> <answer>1</answer>", 1),
    ("<think>a</think> so <answer>1</answer>", 0),
    ("<think>a</think><answer>1</answer><answer>2</answer>", 0),
    ("x<think>a</think><answer>1</answer>", 0),
  ],
)
def test_loose_allows_white_space_and_no_more(text, expected):
  assert form.r1([text], [""], loose=True).tolist() == [expected]


def test_answer_is_that_of_the_first_pair():
  text = "<answer> a\nb </answer><answer>c</answer>"
  assert form.answer_of(text) == "a\nb"
  assert form.answer_of("<answer>open") is None
