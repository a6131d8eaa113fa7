"""Questions and conversations of the Berkeley leaderboard."""

import json

import pytest

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import bfcl, conversation
from jaxrl_mm.evaluate.items import Item, Verdict
from jaxrl_mm.evaluate.run import Ask

CLOSE, COUNT = "[close_ticket(ticket_id=1)]", "[count_tickets()]"
SHAPE = {
  "type": "dict",
  "properties": {"ticket_id": {"type": "integer"}},
  "required": ["ticket_id"],
}
NONE = {"type": "dict", "properties": {}, "required": []}
FUNCTIONS = [
  {"name": "close_ticket", "description": "", "parameters": SHAPE},
  {"name": "count_tickets", "description": "", "parameters": NONE},
]
RECORD = {
  "id": "multi_turn_miss_func_0",
  "question": [[{"role": "user", "content": "Close 1."}], []],
  "initial_config": {"TicketAPI": {"tickets": [1, 2]}},
  "path": ["TicketAPI.close_ticket"],
  "missed_function": {"1": ["count_tickets"]},
  "involved_classes": ["TicketAPI"],
}
TRUTH = [["close_ticket(ticket_id=1)"], ["count_tickets()"]]


def _lines(*rows):
  return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path):
  """A conversation in the layout of the package's data folder."""
  folder = tmp_path / "data"
  name = "BFCL_v3_multi_turn_miss_func.json"
  truth = {"id": RECORD["id"], "ground_truth": TRUTH}
  files = {
    name: _lines(RECORD),
    f"possible_answer/{name}": _lines(truth),
    "multi_turn_func_doc/ticket_api.json": _lines(*FUNCTIONS),
  }
  for path, text in files.items():
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)
  return folder


@pytest.fixture
def item(folder, bfcl_package):
  (item,) = bfcl.read(folder)
  return item


def test_what_is_asked_first(item):
  prompt = bfcl.prompt(item)
  assert prompt.endswith("Close 1.") and '"close_ticket"' in prompt
  # That one is at hand only later.
  assert "count_tickets" not in prompt
  assert bfcl.follow(item, []) == (prompt,)


def test_results_follow_calls_and_requests_follow_words(item):
  said = bfcl.follow(item, [f"<think>1?</think>\n{CLOSE}"])
  assert said[:2] == (bfcl.prompt(item), CLOSE)
  assert json.loads(said[2]) == [
    {"call": "close_ticket", "result": "{'left': 1}"}
  ]
  said = bfcl.follow(item, [CLOSE, "Closed."])
  assert said[3] == "Closed." and '"count_tickets"' in said[4]
  assert len(said) == 5
  assert bfcl.follow(item, [CLOSE, "Closed.", COUNT, "One is left."]) == ()


@pytest.mark.parametrize(
  "replies, right",
  [
    ([CLOSE, "Closed.", COUNT, "One."], True),
    (["[close_ticket(ticket_id=9)]", CLOSE, "Closed.", COUNT, ""], True),
    (["[f(a=1)]", CLOSE, "Closed.", COUNT, "One."], True),
    ([CLOSE, COUNT, "Closed.", COUNT, "One."], True),
    (["No.", CLOSE, COUNT, "One."], False),
    ([CLOSE, "Closed.", "One."], False),
    ([CLOSE, "Closed.", COUNT], False),
    ([CLOSE, "Closed.", COUNT, "One.", "More."], False),
    ([CLOSE, *[COUNT] * 19, "Closed.", COUNT, "One."], True),
    ([CLOSE, *[COUNT] * 20, "Closed.", COUNT, "One."], False),
    (["[close_ticket(1)]", "Closed.", COUNT, "One."], False),
  ],
)
def test_a_conversation_is_graded_by_what_it_did(item, replies, right):
  found = bfcl.grade(json.dumps(replies), item)
  assert found == Verdict(float(right), None)


def test_a_turn_of_too_many_steps_is_the_last(item):
  assert len(bfcl.follow(item, [COUNT] * 20)) == 41
  assert bfcl.follow(item, [COUNT] * 21) == ()


@pytest.mark.parametrize("response", ["", "[]", "3", "[3]", "{", CLOSE])
def test_no_conversation_at_all_is_wrong(item, response):
  assert bfcl.grade(response, item).score == 0


def test_a_whole_conversation_is_held(item):
  """By a model that does what it is asked, and by one that only talks."""

  def model(asks):
    return [[_reply(ask)] for ask in asks]

  answer = conversation.hold(
    lambda asks: [[CLOSE, "I cannot."] for _ in asks],
    model,
    bfcl.follow,
    lambda ask: True,
  )
  ((good, bad),) = answer([Ask(0, bfcl.prompt(item), item)])
  assert json.loads(good) == [CLOSE, "Closed.", COUNT, "One is left."]
  assert json.loads(bad)[0] == "I cannot."
  assert [bfcl.grade(text, item).score for text in (good, bad)] == [1, 0]


def _reply(ask):
  if "result" in ask.text:
    return "Closed." if len(ask.earlier) == 2 else "One is left."
  return COUNT


def test_files_that_do_not_fit_are_refused(folder, bfcl_package, monkeypatch):
  name = "BFCL_v3_multi_turn_miss_func.json"
  answers = folder / "possible_answer" / name
  wrong = {"id": RECORD["id"], "ground_truth": [["close_ticket()"], ["f()"]]}
  short = {"id": RECORD["id"], "ground_truth": TRUTH[:1]}
  monkeypatch.setattr(bfcl.services, "right", lambda *asked: False)
  answers.write_text(_lines(wrong))
  with pytest.raises(InputError, match="possible answer of .* is wrong by"):
    bfcl.read(folder)
  answers.write_text(_lines(short))
  with pytest.raises(InputError, match="has no possible answer that fits"):
    bfcl.read(folder)
  (folder / name).write_text(_lines(RECORD | {"involved_classes": ["Mars"]}))
  answers.write_text(_lines({"id": RECORD["id"], "ground_truth": TRUTH}))
  with pytest.raises(InputError, match="'Mars' is not known"):
    bfcl.read(folder)


def test_the_overall_is_that_of_the_third_release():
  """non-live (1 + 0 + 1)/3, live (1 + 1 + 0)/3, multi-turn 0."""
  given = [
    ("simple", 1),
    ("simple", 1),
    ("parallel", 0),
    ("irrelevance", 1),
    ("live_simple", 1),
    ("live_simple", 1),
    ("live_relevance", 0),
    ("multi_turn_base", 0),
  ]
  items = [Item("", "", "", category=name) for name, _ in given]
  verdicts = [Verdict(float(score), None) for _, score in given]
  found = bfcl.metric(items, verdicts)
  assert found["non-live"] == found["live"] == pytest.approx(2 / 3)
  assert found["multi-turn"] == 0
  assert found["overall"] == pytest.approx(4 / 9)
  assert bfcl.metric(items[:3], verdicts[:3])["overall"] == 0.5
