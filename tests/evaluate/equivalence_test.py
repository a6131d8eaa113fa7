"""What a judge of equivalence is asked, and how its replies count."""

import pytest

from jaxrl_mm.evaluate import equivalence
from jaxrl_mm.evaluate.items import Item

ITEM = Item("1", "How many?", "B", choices=("two", "three"))


def test_the_prompt_has_options_and_only_the_end_of_a_response():
  text = equivalence.prompt("<think>maybe A</think> It is B.", ITEM)
  assert "How many?\nA. two\nB. three\n" in text
  assert "Reference answer:\nB\n" in text
  assert "It is B." in text and "maybe A" not in text
  assert len(equivalence.prompt("x" * 100_000, ITEM)) < 6000


@pytest.mark.parametrize(
  "reply, same",
  [
    ("same", True),
    ("Same.", True),
    ("**same**", True),
    ("different", False),
    ("not the same", False),
    ("", False),
    ("same or different", False),
  ],
)
def test_only_a_clear_reply_is_yes(reply, same):
  found = equivalence.verdicts([("3", ITEM)], lambda prompts: [reply])
  assert found == [same]
