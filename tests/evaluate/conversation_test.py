"""Rounds of a batch of conversations."""

import json

from jaxrl_mm.evaluate import conversation
from jaxrl_mm.evaluate.items import Item
from jaxrl_mm.evaluate.run import Ask

ASKS = [Ask(i, f"{i}?", Item(str(i), f"{i}?", "")) for i in range(5)]


def follow(item, replies):
  """As many rounds as the number of the item says; of 0 none at all."""
  rounds = int(item.id)
  if not rounds or len(replies) >= rounds:
    return ()
  said = [item.question]
  for reply in replies:
    said += [reply, "And?"]
  return tuple(said)


def hold(fits=lambda ask: True):
  """The answer, and the questions of each round after the first."""
  rounds = []

  def later(asks):
    rounds.append(asks)
    return [[f"{a.item.id}.{len(a.earlier) // 2}"] for a in asks]

  first = lambda asks: [[f"{a.item.id}.0", "x"] for a in asks]
  return conversation.hold(first, later, follow, fits), rounds


def test_every_sample_has_a_conversation_of_its_own():
  answer, _ = hold()
  found = answer(ASKS)
  assert found[0] == ["0.0", "x"]
  assert [json.loads(text) for text in found[3]] == [
    ["3.0", "3.1", "3.2"],
    ["x", "3.1", "3.2"],
  ]
  assert json.loads(found[1][0]) == ["1.0"]


def test_rounds_are_batches_of_few_sizes():
  answer, rounds = hold()
  answer(ASKS)
  # Open are 6, 4 and 2; five are asked at once, and one again to fill up.
  assert [len(asks) for asks in rounds] == [5, 1, 4, 2]
  assert {ask.text for asks in rounds for ask in asks} == {"And?"}
  assert rounds[0][0].earlier == ("2?", "2.0")


def test_what_gets_too_long_ends():
  answer, rounds = hold(lambda ask: len(ask.earlier) < 4)
  found = answer(ASKS)
  assert [json.loads(row[0]) for row in found[1:]] == [
    ["1.0"],
    ["2.0", "2.1"],
    ["3.0", "3.1"],
    ["4.0", "4.1"],
  ]
  assert len(rounds) == 2
