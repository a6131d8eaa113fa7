"""Calls read from text and compared with what is allowed."""

import pytest

from jaxrl_mm.rewards import calls

FUNCTIONS = [
  {
    "name": "shop.order",
    "parameters": {
      "type": "dict",
      "properties": {
        "item": {"type": "string"},
        "count": {"type": "integer"},
        "price": {"type": "float"},
        "gift": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "at": {"type": "tuple", "items": {"type": "integer"}},
        "to": {"type": "dict"},
        "note": {"type": "any"},
      },
      "required": ["item", "count"],
    },
  },
  {
    "name": "wait",
    "parameters": {
      "type": "dict",
      "properties": {"seconds": {"type": "integer"}},
      "required": ["seconds"],
    },
  },
]
ORDER = {
  "item": ["apple pie", "pie"],
  "count": [2],
  "price": [3.0, ""],
  "gift": [True, ""],
  "tags": [["a", "b"], ""],
  "at": [[1, 2], ""],
  "to": [{"name": ["Ann"], "city": ["Rome", ""]}, ""],
  "note": ["quick", ""],
}
ONE = [{"shop.order": ORDER}]
TWO = [{"shop.order": ORDER}, {"wait": {"seconds": [5]}}]
PLAIN = "shop.order(item='pie', count=2)"


@pytest.mark.parametrize(
  "response, truths, right",
  [
    (f"[{PLAIN}]", ONE, True),
    (PLAIN, ONE, True),
    (f"```python\n[{PLAIN}]\n```", ONE, True),
    (f"<think>wait(seconds=5)?</think>[{PLAIN}]", ONE, True),
    ("[shop_order(item='pie', count=2)]", ONE, True),
    ("[shop.order(count=2, item='Apple Pie')]", ONE, True),
    ("[shop.order(item='apple-pie', count=2)]", ONE, True),
    ("[shop.order(item='plum', count=2)]", ONE, False),
    ("[shop.order(item='pie', count=3)]", ONE, False),
    ("[shop.order(item='pie', count=2.0)]", ONE, False),
    ("[shop.order(item='pie', count='2')]", ONE, False),
    ("[shop.order(item='pie', count=True)]", ONE, False),
    ("[shop.order(item='pie')]", ONE, False),
    ("[order(item='pie', count=2)]", ONE, False),
    ("[shop.order('pie', 2)]", ONE, False),
    ("[shop.order(item='pie', count=2, size=1)]", ONE, False),
    ("[shop.order(item='pie', count=2, price=3)]", ONE, True),
    ("[shop.order(item='pie', count=2, price=3.0)]", ONE, True),
    ("[shop.order(item='pie', count=2, price=4)]", ONE, False),
    ("[shop.order(item='pie', count=2, gift=True)]", ONE, True),
    ("[shop.order(item='pie', count=2, gift='True')]", ONE, False),
    ("[shop.order(item='pie', count=2, gift=1)]", ONE, False),
    ("[shop.order(item='pie', count=2, tags=['A', 'b'])]", ONE, True),
    ("[shop.order(item='pie', count=2, tags=['b', 'a'])]", ONE, False),
    ("[shop.order(item='pie', count=2, tags=['a'])]", ONE, False),
    ("[shop.order(item='pie', count=2, at=(1, 2))]", ONE, True),
    ("[shop.order(item='pie', count=2, to={'name': 'Ann'})]", ONE, True),
    (
      "[shop.order(item='pie', count=2, to={'name': 'Ann', 'city': 'Rome'})]",
      ONE,
      True,
    ),
    ("[shop.order(item='pie', count=2, to={'city': 'Rome'})]", ONE, False),
    ("[shop.order(item='pie', count=2, to={'name': 'Bob'})]", ONE, False),
    ("[shop.order(item=pie, count=2)]", ONE, True),
    (f"[wait(seconds=5), {PLAIN}]", TWO, True),
    (f"[{PLAIN}, wait(seconds=5)]", TWO, True),
    (f"[{PLAIN}, {PLAIN}]", TWO, False),
    (f"[{PLAIN}]", TWO, False),
    (f"[{PLAIN}, wait(seconds=5)]", ONE, False),
    (f"I call {PLAIN} now", ONE, False),
    ("[]", ONE, False),
    ("", ONE, False),
    ("[shop.order(item='pie', count=", ONE, False),
    ("[shop.order(**{'item': 'pie', 'count': 2})]", ONE, False),
    ("[__import__('os').system('true')]", ONE, False),
    ("[(lambda: 1)()]", ONE, False),
    ("[" * 500, ONE, False),
  ],
)
def test_match(response, truths, right):
  found = calls.calls_of(response)
  assert right == (found is not None and calls.match(found, FUNCTIONS, truths))


def test_arguments_without_a_name_are_dropped():
  """A call all the same, where none was to be made."""
  assert calls.calls_of("[wait(5, unit='s')]") == [
    calls.Call("wait", {"unit": "s"})
  ]


def test_values_are_literals_and_never_run(tmp_path):
  path = tmp_path / "ran"
  (call,) = calls.calls_of(f"f(a=open({str(path)!r}, 'w'), b=-1, c=x.y)")
  assert isinstance(call.arguments["a"], calls.Variable)
  assert call.arguments["b"] == -1
  assert call.arguments["c"] == "x.y"
  assert not path.exists()
