"""Equality by the kind of the answer, as MathVista has it.

https://arxiv.org/abs/2310.02255, appendix; its released script cuts the
decimals of an integer answer off, so that 3.9 is right for 3. Here it is wrong.
"""

import math
from typing import Literal

from jaxrl_mm.rewards import final

Kind = Literal["integer", "float", "list", "text"]


def equal(answer: str, truth: str, kind: Kind, *, decimals: int = 0) -> bool:
  """Whether an answer has the value of the truth.

  Args:
    answer: the final answer, without the response around it.
    truth: as the benchmark writes it.
    kind: of the truth.
    decimals: to which a float is rounded before it is compared.
  """
  if kind == "list":
    return _same_list(final.numbers(answer), final.numbers(truth), decimals)
  if kind == "text":
    return final.words(answer) == final.words(truth) != ""
  value, true = final.number(answer), final.number(truth)
  if value is None or true is None:
    return False
  return value == true if kind == "integer" else _close(value, true, decimals)


def _same_list(values, truths, decimals) -> bool:
  if values is None or truths is None or len(values) != len(truths):
    return False
  return all(_close(v, t, decimals) for v, t in zip(values, truths))


def _close(value: float, truth: float, decimals: int) -> bool:
  """Equal after rounding; a hair is allowed for, as 0.285 has no exact form."""
  if not (math.isfinite(value) and math.isfinite(truth)):
    return False
  near = math.isclose(value, truth, rel_tol=1e-9, abs_tol=1e-12)
  return near or round(value, decimals) == round(truth, decimals)
