"""Is the answer equal to the truth, as mathematics?"""

import logging
import re
from collections.abc import Sequence

import math_verify
import numpy as np

from jaxrl_mm.rewards import format as form

_PLAIN_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")
# Nothing a grader should read is longer, and parsers are slow on long texts.
_LONGEST = 300


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
  return math_verify.verify(
    math_verify.parse(f"${truth}$", raise_on_error=False),
    math_verify.parse(f"${answer}$", raise_on_error=False),
    raise_on_error=False,
  )
