"""Is the answer equal to the truth, as mathematics?"""

import logging
import math
import re
from collections.abc import Sequence

import math_verify
import numpy as np

from jaxrl_mm.rewards import format as form

_PLAIN_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")
# Nothing a grader should read is longer, and parsers are slow on long texts.
_LONGEST = 300
_EXPONENT = re.compile(r"(?:\^|\*\*)[\s{(]*-?(\d+)")
_FACTORIALS = re.compile(r"\d{5,}[\s)}]*!|![\s)}]*!")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LARGEST_EXPONENT = 10**6


def exact(completions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
  """1 where the text in `<answer>` equals the truth, else 0.

  What the parser raises is left to `compose.score`, which counts it.
  """
  return np.array(
    [_same(form.answer_of(c), a) for c, a in zip(completions, answers)],
    np.float32,
  )


def equal(answer: str | None, truth: str) -> bool:
  """Equality as text, as numbers, then as mathematics by math-verify.

  The first two cases are what most answers are and cost microseconds. An
  answer that math-verify cannot read is wrong, never right.
  """
  try:
    return _same(answer, truth)
  except Exception as error:  # whatever a parser of free text may raise
    logging.warning("math-verify failed on %r: %r", answer, error)
    return False


def _same(answer: str | None, truth: str) -> bool:
  if answer is None or not answer or len(answer) > _LONGEST:
    return False
  if answer == truth.strip():
    return True
  if all(_PLAIN_NUMBER.fullmatch(x) for x in (answer, truth.strip())):
    return float(answer) == float(truth)
  if _is_huge(answer) or _is_huge(truth):
    return False
  return math_verify.verify(
    math_verify.parse(f"${truth}$", raise_on_error=False),
    math_verify.parse(f"${answer}$", raise_on_error=False),
    raise_on_error=False,
  )


def _is_huge(text: str) -> bool:
  """Would a number in it be too large to write down?

  The parser computes powers of integers, and its time limit cannot stop that.
  """
  text = _COMMAND.sub("", text).replace("**", "^")
  exponents = (int(digits[:9]) for digits in _EXPONENT.findall(text))
  product = math.prod(max(exponent, 1) for exponent in exponents)
  if product > _LARGEST_EXPONENT or _FACTORIALS.search(text):
    return True
  return any(_is_tower(text[m.end() :]) for m in re.finditer(r"\^", text))


def _is_tower(rest: str) -> bool:
  """Does the text, which begins with an exponent, raise it to a power?"""
  group = _group(rest.lstrip())
  after = rest.lstrip()[len(group) :].lstrip()
  letters = re.search("[A-Za-z]", group) is not None
  return not letters and (after.startswith("^") or "^" in group)


def _group(text: str) -> str:
  """The bracketed group or the digits at the start of a text."""
  depth = 0
  for end, sign in enumerate(text):
    depth += (sign in "{(") - (sign in ")}")
    if depth <= 0 and not sign.isdigit():
      return text[: end + (depth == 0 and sign in ")}")]
  return text
