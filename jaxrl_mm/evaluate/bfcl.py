"""BFCL, the Berkeley leaderboard of function calls, as its third release.

https://gorilla.cs.berkeley.edu/leaderboard.html. Single questions are graded by
the syntax tree of the calls, conversations by what the calls do.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import metrics, records
from jaxrl_mm.evaluate.items import Benchmark, Item, Verdict
from jaxrl_mm.evaluate.records import Record
from jaxrl_mm.rewards import calls, services
from jaxrl_mm.rewards.calls import Call

# File name -> which part of the score; the other files need Java, JavaScript or
# a live service, and are not read.
_PARTS = {
  **dict.fromkeys(("simple", "simple_python"), "non-live"),
  **dict.fromkeys(("multiple", "parallel", "parallel_multiple"), "non-live"),
  "irrelevance": "non-live",
  **dict.fromkeys(("live_simple", "live_multiple", "live_parallel"), "live"),
  "live_parallel_multiple": "live",
  **dict.fromkeys(("live_irrelevance", "live_relevance"), "live"),
  **dict.fromkeys(("multi_turn_base", "multi_turn_long_context"), "multi-turn"),
  **dict.fromkeys(
    ("multi_turn_miss_func", "multi_turn_miss_param"), "multi-turn"
  ),
}
# Whether a call is made at all is what these ask.
_WHETHER = ("irrelevance", "live_irrelevance", "live_relevance")
# What is at hand in a conversation -> the file of its functions.
_SERVICES = {
  "GorillaFileSystem": "gorilla_file_system",
  "MathAPI": "math_api",
  "MessageAPI": "message_api",
  "TicketAPI": "ticket_api",
  "TradingBot": "trading_bot",
  "TravelAPI": "travel_booking",
  "TwitterAPI": "posting_api",
  "VehicleControlAPI": "vehicle_control",
}
# Steps of a turn; one more, and the conversation has failed.
_MOST_STEPS = 20

_PROMPT = """\
Below is a request and a list of functions. Reply with the calls that fulfil \
the request and nothing else, in this form:
[name1(parameter1=value1, parameter2=value2), name2(parameter=value)]
Values are Python literals. If no function fits, or a parameter it needs is \
not given, say so in a sentence without a call.{more}

Functions:
{functions}

Request:
{question}"""
_MORE = """ \
What your calls return is given to you, and you can call again until the \
request is fulfilled; then say so in a sentence without a call, and the next \
request follows."""
_NEW = """\
From now on there are these functions too:
{functions}

Can you fulfil the request with them?"""


# ------------------------------------------------------------- the files
def read(folder: Path) -> list[Item]:
  """The parts in Python, as the package ships them.

  `BFCL_v<n>_<category>.json` in JSON lines, for most of them a file of the same
  name in `possible_answer`, and for conversations `multi_turn_func_doc`.

  Raises:
    InputError: also where there are conversations and nothing to hold them
      with.
  """
  folder = Path(folder)
  files = [
    (file, name)
    for file in sorted(folder.glob("BFCL_v*.json"))
    if (name := file.stem.split("_", 2)[2]) in _PARTS
  ]
  if not files:
    raise InputError(
      f"{folder} has no file such as BFCL_v3_simple.json; copy the data folder "
      "of the bfcl-eval package there"
    )
  items = [item for file, name in files for item in _items(file, name)]
  _check_services(items)
  return items


def _items(file: Path, category: str) -> list[Item]:
  answers = file.parent / "possible_answer" / file.name
  truths = {}
  if category not in _WHETHER:
    truths = {
      r.values.get("id"): r.values.get("ground_truth")
      for r in records.read_file(answers)
    }
  make = _conversation if _PARTS[category] == "multi-turn" else _question
  return [make(r, truths, category) for r in records.read_file(file)]


def _question(record: Record, truths: dict, category: str) -> Item:
  name = records.get(record, "id", str)
  functions = records.get(record, "function", list)
  truth = truths.get(name)
  described = {function["name"] for function in functions}
  called = {called for call in truth or () for called in call}
  if truths and (truth is None or called - described):
    raise _no_answer(record, name)
  return Item(
    id=name,
    question=_said(records.get(record, "question", list)[0]),
    answer=json.dumps(truth or []),
    category=category,
    details={"functions": functions, "truths": truth or []},
  )


def _conversation(record: Record, truths: dict, category: str) -> Item:
  name = records.get(record, "id", str)
  turns = records.get(record, "question", list)
  truth = truths.get(name)
  if truth is None or len(truth) != len(turns):
    raise _no_answer(record, name)
  at_hand = tuple(records.get(record, "involved_classes", list))
  functions = [f for service in at_hand for f in _functions(record, service)]
  late = record.values.get("missed_function") or {}
  held = {name for names in late.values() for name in names}
  first = [f for f in functions if f["name"] not in held]
  requests = [
    _new(functions, late[str(turn)]) if str(turn) in late else _said(messages)
    for turn, messages in enumerate(turns)
  ]
  config = records.get(record, "initial_config", dict)
  return Item(
    id=name,
    question=requests[0],
    answer=json.dumps(truth),
    category=category,
    details={
      "functions": first,
      "truths": truth,
      "requests": requests,
      "known": [f["name"] for f in functions],
      "scene": services.Scene(name, at_hand, config),
    },
  )


def _functions(record: Record, service: str) -> list[dict[str, Any]]:
  if service not in _SERVICES:
    raise InputError(
      f"{record.where}: the service '{service}' is not known here; use the "
      "conversations of the third or fourth release"
    )
  folder = record.file.parent / "multi_turn_func_doc"
  found = records.read_file(folder / f"{_SERVICES[service]}.json")
  return [function.values for function in found]


def _no_answer(record: Record, name: str) -> InputError:
  return InputError(
    f"{record.where}: {name} has no possible answer that fits; copy both files "
    "of the same release"
  )


def _said(messages: Sequence[dict]) -> str:
  return "\n".join(message["content"] for message in messages)


def _new(functions: Sequence[dict], names: Sequence[str]) -> str:
  new = [function for function in functions if function["name"] in names]
  return _NEW.format(functions=json.dumps(new))


def _check_services(items: Sequence[Item]) -> None:
  """Tries the truth of the first conversation, before the model is asked."""
  first = next((i for i in items if "scene" in i.details), None)
  if first is None:
    return
  services.check()
  scene, truths = first.details["scene"], first.details["truths"]
  if not services.right(scene, [[turn] for turn in truths], truths):
    raise InputError(
      f"the possible answer of {first.id} is wrong by the installed bfcl-eval; "
      "use the data folder of that package"
    )


# --------------------------------------------------------- what is asked
def prompt(item: Item) -> str:
  """The request, the functions as JSON, and the form of the answer."""
  return _PROMPT.format(
    more=_MORE if "scene" in item.details else "",
    functions=json.dumps(item.details["functions"]),
    question=item.question,
  )


def follow(item: Item, replies: Sequence[str]) -> tuple[str, ...]:
  """What user and model said so far, with what the calls returned.

  A turn ends with a reply that makes no call.
  """
  if "scene" not in item.details:
    return ()
  turns = _turns(item, replies)
  over = len(turns) > len(item.details["truths"]) or _failed(turns)
  found = None if over else _results(item, turns)
  if found is None:
    return ()
  requests = iter([prompt(item), *item.details["requests"][1:]])
  said = list(_talk(requests, turns, found, iter(replies)))
  return tuple(said)


def _turns(item: Item, replies: Sequence[str]) -> list[list[list[Call]]]:
  """Turn -> step -> calls; the last turn is the one that goes on."""
  turns = [[]]
  for reply in replies:
    found = calls.calls_of(reply)
    if found is None:
      turns.append([])
    else:
      turns[-1].append(found)
  return turns


def _failed(turns: Sequence[Sequence]) -> bool:
  return any(len(steps) > _MOST_STEPS for steps in turns)


def _texts(item: Item, turns) -> list[list[list[str]]]:
  text = lambda call: services.text_of(call, item.details["known"])
  return [[[text(c) for c in step] for step in steps] for steps in turns]


def _results(item: Item, turns) -> list[list[list[str]]] | None:
  if turns == [[]]:
    return [[]]
  return services.results(item.details["scene"], _texts(item, turns))


def _talk(requests, turns, found, replies) -> Iterator[str]:
  for number, (steps, results) in enumerate(zip(turns, found), 1):
    yield next(requests)
    for step, returned in zip(steps, results):
      yield _spoken(next(replies))
      rows = [{"call": c.name, "result": r} for c, r in zip(step, returned)]
      yield json.dumps(rows)
    if number < len(turns):
      yield _spoken(next(replies))


def _spoken(reply: str) -> str:
  """Without the thoughts, as chat forms of reasoning models leave them out."""
  return reply.rpartition("</think>")[2].strip()


# ------------------------------------------------------------- the score
def grade(response: str, item: Item) -> Verdict:
  """1 for the expected calls; where nothing fits, for a reply without one.

  Of a conversation, 1 where the calls of each turn do what was asked.
  """
  if "scene" in item.details:
    return Verdict(float(_did(response, item)), None)
  found = calls.calls_of(response)
  if item.category in _WHETHER:
    wanted = "irrelevance" not in item.category
    pick = "none" if found is None else "call"
    return Verdict(float(wanted == (found is not None)), pick)
  if found is None:
    return Verdict(0.0, None)
  functions, truths = item.details["functions"], item.details["truths"]
  right = calls.match(found, functions, truths)
  pick = sorted(f"{c.name}{sorted(c.arguments.items())}" for c in found)
  return Verdict(float(right), "; ".join(pick))


def _did(response: str, item: Item) -> bool:
  try:
    replies = json.loads(response)
  except ValueError:
    return False
  if not isinstance(replies, list) or not all(
    isinstance(reply, str) for reply in replies
  ):
    return False
  truths = item.details["truths"]
  turns = _turns(item, replies)
  if len(turns) != len(truths) + 1 or _failed(turns):
    return False
  texts = _texts(item, turns[:-1])
  return services.right(item.details["scene"], texts, truths)


def metric(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """ "non-live" and "multi-turn": means of their categories; "live": of all its
  items; "overall": of these three, as far as they were asked.

  So the third release counts, which was current when the papers were written.
  Its "simple" is the mean of three languages, of which only Python is here.
  """
  scores = [v.score for v in verdicts]
  each = metrics.by_category([i.category for i in items], scores)
  of = lambda part: [v for c, v in each.items() if _PARTS[c] == part]
  live = [s for i, s in zip(items, scores) if _PARTS[i.category] == "live"]
  parts = {"non-live": of("non-live"), "live": live}
  parts |= {"multi-turn": of("multi-turn")}
  found = {name: float(np.mean(part)) for name, part in parts.items() if part}
  return {"overall": float(np.mean(list(found.values()))), **found, **each}


BFCL = Benchmark(
  read,
  prompt,
  grade,
  metric,
  "https://gorilla.cs.berkeley.edu/leaderboard.html",
  hub="gorilla-llm/Berkeley-Function-Calling-Leaderboard",
  files=("BFCL_v*.json", "possible_answer/BFCL_v*.json"),
  follow=follow,
)
