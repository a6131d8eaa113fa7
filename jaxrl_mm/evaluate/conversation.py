"""Holds conversations, all of a batch at once, round by round."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from jaxrl_mm import sharding
from jaxrl_mm.evaluate.items import Item
from jaxrl_mm.evaluate.run import Answer, Ask, at_once

Follow = Callable[[Item, Sequence[str]], tuple[str, ...]]


class _Talk(NamedTuple):
  ask: Ask
  replies: list[str]


def hold(
  first: Answer,
  later: Answer,
  follow: Follow,
  fits: Callable[[Ask], bool],
  submit: Callable[..., Future] = at_once,
) -> Answer:
  """An answer to the items of a benchmark with conversations.

  What comes back of a conversation is the JSON list of its replies. One that
  gets too long for the model ends there.

  Args:
    first: answers the first questions, each several times.
    later: answers a question once.
    follow: of the benchmark.
    fits: whether there is room for what is asked.
    submit: of a process pool, in which `follow` works.
  """

  def answer(asks: list[Ask]) -> list[list[str]]:
    said = first(asks)
    talks = [
      [_Talk(ask, [text]) for text in texts] for ask, texts in zip(asks, said)
    ]
    spoken = [bool(follow(ask.item, ())) for ask in asks]
    waiting = [t for row, goes_on in zip(talks, spoken) if goes_on for t in row]
    while waiting := _next(waiting, follow, fits, submit):
      for (talk, _), text in zip(waiting, _ask(later, waiting, len(asks))):
        talk.replies.append(text)
      waiting = [talk for talk, _ in waiting]
    return [
      [json.dumps(t.replies) if goes_on else t.replies[0] for t in row]
      for row, goes_on in zip(talks, spoken)
    ]

  return answer


def _next(
  talks: Sequence[_Talk], follow, fits, submit
) -> list[tuple[_Talk, Ask]]:
  """Those that go on, with what is asked next."""
  found = [submit(follow, talk.ask.item, tuple(talk.replies)) for talk in talks]
  # One process may have been too slow for a service where others were not.
  said = sharding.of_first_process(json.dumps([f.result() for f in found]))
  asks = [
    (talk, talk.ask._replace(text=texts[-1], earlier=tuple(texts[:-1])))
    for talk, texts in zip(talks, json.loads(said))
    if texts
  ]
  return [(talk, ask) for talk, ask in asks if fits(ask)]


def _ask(
  later: Answer, waiting: Sequence[tuple[_Talk, Ask]], batch: int
) -> list[str]:
  """A reply to each, some at once; few different numbers of questions."""
  asks = [ask for _, ask in waiting]
  texts = []
  for start in range(0, len(asks), batch):
    part = asks[start : start + batch]
    room = min(1 << (len(part) - 1).bit_length(), batch)
    filled = [*part, *[part[0]] * (room - len(part))]
    texts += [reply for (reply,) in later(filled)[: len(part)]]
  return texts
