"""Yes or no, read from all that models say."""

import pytest

from jaxrl_mm.rewards import yes_no


@pytest.mark.parametrize(
  "response, pick",
  [
    ("Yes", "yes"),
    ("no", "no"),
    ("NO.", "no"),
    ("Yes, there is a dog.", "yes"),
    ("No, there is no dog.", "no"),
    ("**Yes**", "yes"),
    ('"no"', "no"),
    (r"\boxed{Yes}", "yes"),
    (r"\boxed{\text{no}}", "no"),
    (r"No wait. \boxed{Yes}", "yes"),
    ("Answer: yes", "yes"),
    ("The answer is no, I think", "no"),
    ("<answer>Yes</answer>", "yes"),
    ("<think>no no no</think>yes", "yes"),
    ("<think>yes</think><answer>no</answer>", "no"),
    ("I would say yes.", "yes"),
    ("There is no dog.", "no"),
    ("It could be yes or no.", None),
    ("Is it yes? No", None),
    ("<think>yes</think>", None),
    ("Nothing", None),
    ("Yesterday", None),
    ("know", None),
    ("not sure", None),
    ("", None),
    ("   ", None),
    ("ja", None),
    ("<answer></answer>", None),
    ("Yes\nNo", "yes"),
    ("- Yes", "yes"),
    ("eyes", None),
  ],
)
def test_pick(response, pick):
  assert yes_no.pick(response) == pick
