"""Equality of OlympiadBench: several answers, units, tolerances, intervals.

https://arxiv.org/abs/2402.14008, section 3.4. Its released script also takes a
hundredth and a hundredfold of a number for equal; here a percent sign has to
say so.
"""

import re
from collections.abc import Sequence

from jaxrl_mm.rewards import final
from jaxrl_mm.rewards import math as maths

_AND = re.compile(r"\\quad|\\qquad|\b(?:and|or)\b|;")
_ENDS = re.compile(r"([\[(])(.*)([\])])", re.DOTALL)
_SLACK = 1.01  # of the released script, for tolerances that end in a half
_MOST_ANSWERS = 20


def answers_of(response: str) -> list[str] | None:
  """The single answers of a response; None where it has none.

  All boxes after the last thought count, for several answers may stand in
  boxes of their own; the same one twice counts once.
  """
  spoken = response.rpartition("</think>")[2]
  boxes = list(dict.fromkeys(final.boxed(spoken)))
  if boxes:
    return [part for box in boxes for part in split(box)] or None
  answer = final.answer_of(response)
  return split(answer) or None if answer else None


def split(text: str) -> list[str]:
  """Answers between commas that are in no bracket, ± as two of them."""
  text = _AND.sub(",", final.plain(text))
  parts, depth, start = [], 0, 0
  for i, sign in enumerate(text):
    depth += (sign in "([{") - (sign in ")]}")
    if sign == "," and depth == 0 and not _thousands(text, i):
      parts.append(text[start:i])
      start = i + 1
  parts = [p.strip(" .\n") for p in (*parts, text[start:])]
  return [s for p in parts if p for s in _signs(p)]


def _thousands(text: str, comma: int) -> bool:
  """Is this the comma of 1,000?"""
  before = comma > 0 and text[comma - 1].isdigit()
  return before and re.match(r"\d{3}(?!\d)", text[comma + 1 :]) is not None


def _signs(part: str) -> list[str]:
  part = part.replace("±", "\\pm")
  if "\\pm" not in part:
    return [part]
  return [part.replace("\\pm", "+"), part.replace("\\pm", "-")]


def equal(
  answers: Sequence[str],
  truths: Sequence[str],
  *,
  unit: str = "",
  tolerances: Sequence[float] = (),
) -> bool:
  """Whether answers and truths are the same ones, in any order.

  Args:
    answers: what `answers_of` gave.
    truths: what `split` made of each final answer of the record.
    unit: which may be written or left out.
    tolerances: absolute, one for all truths or one each; none means equal.
  """
  if len(answers) != len(truths) or len(answers) > _MOST_ANSWERS:
    return False
  if len(tolerances) not in (0, 1, len(truths)):
    return False
  reach = list(tolerances) or [0.0]
  reach = reach * len(truths) if len(reach) == 1 else reach
  rest = [_bare(answer, unit) for answer in answers]
  for truth, tolerance in zip(truths, reach):
    true = _bare(truth, unit)
    found = next((a for a in rest if _one_equal(a, true, tolerance)), None)
    if found is None:
      return False
    rest.remove(found)
  return True


def _bare(text: str, unit: str) -> str:
  text, unit = final.plain(text), "".join(final.plain(unit).split())
  if unit:
    spaced = r"\s*".join(map(re.escape, unit))
    text = re.sub(rf"(?<=.)\s*{spaced}\s*$", "", text)
  # "x \in [0, 1]" is the interval.
  return text.rpartition("\\in ")[2].strip()


def _one_equal(answer: str, truth: str, tolerance: float) -> bool:
  value, true = _share(answer), _share(truth)
  if value is not None and true is not None:
    reach = max(tolerance * _SLACK, 1e-8 * max(1.0, abs(true)))
    return abs(value - true) <= reach
  if true is not None and final.number(answer) is not None:
    return False  # A unit that is not the truth's.
  if any("\\cup" in t or _ENDS.fullmatch(t) for t in (answer, truth)):
    return _same_sets(answer, truth, tolerance)
  return maths.equal(answer, truth)


def _share(text: str) -> float | None:
  """Its number; a percent is a hundredth."""
  value = final.number(text, bare=True)
  percent = value is not None and text.rstrip(" .").endswith("%")
  return value / 100 if percent else value


def _same_sets(answer: str, truth: str, tolerance: float) -> bool:
  """Unions of intervals, or tuples: same brackets and same ends."""
  left, right = answer.split("\\cup"), truth.split("\\cup")
  if len(left) != len(right) or len(left) > _MOST_ANSWERS:
    return False
  for true in right:
    same = (a for a in left if _same_interval(a, true, tolerance))
    found = next(same, None)
    if found is None:
      return False
    left.remove(found)
  return True


def _same_interval(answer: str, truth: str, tolerance: float) -> bool:
  left, right = (_ENDS.fullmatch(t.strip()) for t in (answer, truth))
  if left is None or right is None:
    return False
  if (left[1], left[3]) != (right[1], right[3]):
    return False
  ends, true = split(left[2]), split(right[2])
  if len(ends) != len(true):
    return False
  return all(_one_equal(a, t, tolerance) for a, t in zip(ends, true))
