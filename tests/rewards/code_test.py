"""Programs found in responses, and tried."""

import pytest

from jaxrl_mm.errors import InputError
from jaxrl_mm.rewards import code, sandbox
from jaxrl_mm.rewards.code import Case
from jaxrl_mm.rewards.sandbox import Limits


def _has_sandbox():
  try:
    sandbox.check()
  except InputError:
    return False
  return True


needs_sandbox = pytest.mark.skipif(not _has_sandbox(), reason="no bubblewrap")


@pytest.mark.parametrize(
  "response, program",
  [
    ("```python\nprint(1)\n```", "print(1)\n"),
    ("```\nprint(1)\n```", "print(1)\n"),
    ("```py\na\n```\ntext\n```python\nb\n```", "b\n"),
    ("<think>```python\na\n```</think>", None),
    ("```python\n\n```", None),
    ("print(1)", None),
    ("```python\nprint(1)", None),
    ("", None),
  ],
)
def test_program_of(response, program):
  assert code.program_of(response) == program


@pytest.mark.parametrize(
  "output, expected, same",
  [
    ("1\n", "1", True),
    ("1 2", "1  2\n", True),
    ("1.0", "1", True),
    ("0.1", "0.10", True),
    (" a \nb\n\n", "a\nb", True),
    ("Yes", "YES", False),
    ("1\n2", "1 2", False),
    ("1", "2", False),
    ("", "1", False),
    ("nan", "1", False),
    ("1 2 3", "1 2", False),
  ],
)
def test_same_output(output, expected, same):
  assert code.same_output(output, expected) == same


ADD = "a, b = map(int, input().split())\nprint(a + b)"
CASES = [Case("1 2\n", "3\n"), Case("5 5", "10")]
METHOD = [Case('[1, 2]\n"x"', '["x", 3]', "f")]


@needs_sandbox
@pytest.mark.parametrize(
  "program, cases, right",
  [
    (ADD, CASES, True),
    (ADD.replace("+", "-"), CASES, False),
    ("print(3)", CASES, False),
    ("print(3)\n1 / 0", CASES[:1], False),
    ("while True: pass", CASES[:1], False),
    ("class Solution:\n  def f(self, a, b): return [b, sum(a)]", METHOD, True),
    (
      "class Solution:\n  def f(self, a: List, b): return b, sum(a)",
      METHOD,
      True,
    ),
    ("def f(a, b): return [b, sum(a)]", METHOD, True),
    ("def f(a, b):\n  print(a)\n  return [b, sum(a)]", METHOD, True),
    ("def f(a, b): return [b, 4]", METHOD, False),
    ("def f(a, b): return object()", METHOD, False),
    ("def g(a, b): pass", METHOD, False),
    # An answer of its own making, and the door shut behind it.
    ("print('[\"x\", 3]')\nimport os; os._exit(0)", METHOD, False),
    # Results that say they are equal to everything.
    (
      "class E(int):\n  def __eq__(self, o): return True\n"
      "def f(a, b): return E(7)",
      METHOD,
      False,
    ),
    (
      "import json; json.dumps = lambda x: '[\"y\"]'\ndef f(a, b): 0",
      METHOD,
      False,
    ),
  ],
)
def test_passes(program, cases, right):
  assert code.passes(program, cases, Limits(seconds=1)) == right
