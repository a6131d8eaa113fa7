"""Choices read from text, against the cases of R1-Reward."""

import json
from pathlib import Path

import pytest

from jaxrl_mm.rewards import choice

CASES = json.loads(
  (Path(__file__).parents[1] / "golden/stable_reinforce.json").read_text()
)["string_cases"]["verify_math"]["triples"]


@pytest.mark.parametrize("text, truths, expected", CASES)
def test_pairwise_with_fallback_is_the_released_rule(text, truths, expected):
  score = choice.pairwise([text], [truths], untagged=True)
  assert score.tolist() == [expected]


def test_pairwise_by_default_reads_the_tag_only():
  tagged, bare = "<answer>Response 2.0</answer>", "</think> so 2"
  assert choice.pairwise([tagged, bare], ["2", "2"]).tolist() == [1, 0]
  assert choice.pairwise([bare], ["2"], untagged=True).tolist() == [1]


def test_a_truth_that_names_nothing_is_matched_by_nothing():
  assert choice.pairwise(["garbage"], ["garbage"]).tolist() == [0]


@pytest.mark.parametrize(
  "text, expected",
  [
    ("<think>A?</think><answer>B</answer>", "B"),
    ("<answer>(c)</answer>", "C"),
    ("<answer>B. a cat</answer>", "B"),
    ("<answer>Option D</answer>", "D"),
    ("<answer>A cat</answer>", None),
    ("<answer>A or B</answer>", None),
    ("<answer>A, B</answer>", None),
    ("<answer></answer>", None),
    (r"first \boxed{A}, no: \boxed{\text{(E)}}", "E"),
    ("I think.\nAnswer: $\\boxed{C}$", "C"),
    ("Thus the answer is: **D**", "D"),
    ("Answer: B", "B"),
    ("b", "B"),
    ("nothing of the kind", None),
    ("(B)", "B"),
    ("B.", "B"),
    ("B) a dog", "B"),
    ("choice c", "C"),
    (r"\boxed{B}", "B"),
    (r"\boxed{B} or \boxed{C}", "C"),
    (r"\boxed{BC}", None),
    (r"\boxed{B", None),
    (r"\boxed{}", None),
    ("Answer: B or C", None),
    ("Answer: (B)\nI hope.", "B"),
    ("The answer is B.", "B"),
    ("<answer>B</answer><answer>C</answer>", "B"),
    ("<answer>BB</answer>", None),
    ("<answer>2</answer>", None),
    ("<answer>É</answer>", None),
    ("", None),
  ],
)
def test_letters(text, expected):
  assert choice.letter_of(text) == expected
  right = expected or "A"
  assert choice.letter([text], [right.lower()]).tolist() == [bool(expected)]


@pytest.mark.parametrize(
  "response, choices, pick",
  [
    ("B", ["cat", "dog"], "B"),
    (r"\boxed{B}", ["cat", "dog"], "B"),
    ("Answer: (b) dog", ["cat", "dog"], "B"),
    (r"\boxed{dog}", ["cat", "dog"], "B"),
    (r"\boxed{\text{Dog.}}", ["cat", "dog"], "B"),
    ("<answer>dog</answer>", ["cat", "dog"], "B"),
    ("The answer is: dog", ["cat", "dog"], "B"),
    (r"\boxed{C}", ["cat", "dog"], None),
    (r"\boxed{0.5}", ["1/3", "1/2"], "B"),
    (r"\boxed{$\frac{1}{2}$}", ["1/3", "0.50"], "B"),
    (r"\boxed{5 cm}", ["5", "5"], None),
    (r"\boxed{7}", ["1", "2"], None),
    (r"\boxed{cat or dog}", ["cat", "dog"], None),
    (r"\boxed{A, B}", ["cat", "dog"], None),
    (r"\boxed{A} \boxed{B}", ["cat", "dog"], "B"),
    ("<think>A</think>B", ["cat", "dog"], "B"),
    ("<think>B</think>", ["cat", "dog"], None),
    ("dog", ["cat", "dog"], None),
    ("A dog", ["cat", "dog"], None),
    ("", ["cat", "dog"], None),
    ("I see a cat", ["cat", "dog"], None),
    (r"\boxed{}", ["", "dog"], None),
  ],
)
def test_options(response, choices, pick):
  assert choice.option_of(response, choices) == pick
