"""Programs that a model wrote, tried on their tests in the sandbox."""

import json
import re
import secrets
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from jaxrl_mm.rewards import sandbox
from jaxrl_mm.rewards.sandbox import Limits

_FENCE = re.compile(r"```(?:python3?|py)?[ \t]*\n(.*?)```", re.DOTALL)
# What the judges' sites import for everyone.
_PRELUDE = """\
import bisect, collections, functools, heapq, itertools, math, operator
import random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
sys.setrecursionlimit(50000)
"""
_DRIVER = """

import json as _json
_call = getattr(Solution(), {name!r}) if "Solution" in globals() else {name}
_given = [_json.loads(x) for x in {given!r}.split("\\n") if x.strip()]
print("\\n" + {mark!r} + _json.dumps(_call(*_given)))
"""


class Case(NamedTuple):
  """One test of a program.

  Attributes:
    given: what it reads; or the arguments, one JSON value a line.
    expected: what it should write; or the result, as JSON.
    function: to be called with the arguments; "" where it reads and writes.
  """

  given: str
  expected: str
  function: str = ""


def program_of(response: str) -> str | None:
  """The last fenced program after the thoughts; None without one."""
  found = _FENCE.findall(response.rpartition("</think>")[2])
  return found[-1] if found and found[-1].strip() else None


def passes(
  program: str, cases: Sequence[Case], limits: Limits | None = None
) -> bool:
  """Whether a program passes all its tests; the first failure ends it.

  Every test has a process of its own, and what is expected never enters the
  sandbox, so a program has nothing to copy or to change.

  Raises:
    InputError: there is no sandbox on this machine.
  """
  return all(_passes(program, case, limits) for case in cases)


def _passes(program: str, case: Case, limits: Limits | None) -> bool:
  if case.function:
    return _returns(program, case, limits)
  outcome = sandbox.run(_PRELUDE + program, case.given, limits)
  done = outcome.code == 0 and not outcome.timed_out
  return done and same_output(outcome.output, case.expected)


def _returns(program: str, case: Case, limits: Limits | None) -> bool:
  mark = secrets.token_hex(8)
  driver = _DRIVER.format(name=case.function, given=case.given, mark=mark)
  outcome = sandbox.run(_PRELUDE + program + driver, "", limits)
  _, found, text = outcome.output.rpartition(mark)
  if not found or outcome.code != 0 or outcome.timed_out:
    return False
  try:
    return json.loads(text) == json.loads(case.expected)
  except (ValueError, RecursionError):
    return False


def same_output(output: str, expected: str) -> bool:
  """Equal lines, without the white space around them and around all; words
  that are numbers are compared by value."""
  left, right = output.strip().split("\n"), expected.strip().split("\n")
  if len(left) != len(right):
    return False
  return all(_same_line(a.strip(), b.strip()) for a, b in zip(left, right))


def _same_line(output: str, expected: str) -> bool:
  if output == expected:
    return True
  left, right = output.split(), expected.split()
  if len(left) != len(right):
    return False
  return all(a == b or _same_number(a, b) for a, b in zip(left, right))


def _same_number(output: str, expected: str) -> bool:
  try:
    return Decimal(output) == Decimal(expected)
  except InvalidOperation:
    return False
