"""The largest arrays of a program that the compiler has not seen yet."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

# What else makes an array is mostly fused into what reads it.
_STORED = (
  "concatenate",
  "conv_general_dilated",
  "dot_general",
  "gather",
  "scan",
  "scatter",
  "sort",
  "while",
)


def largest(traced: ClosedJaxpr) -> list[tuple[int, str]]:
  """(bytes of all devices together, what it is), largest first.

  Each kind of array is named once, where it comes first.

  Args:
    traced: of the program, `jax.jit(f).trace(...).jaxpr`.
  """
  found = {}
  for size, shape, where in _made(traced.jaxpr, ""):
    found.setdefault((size, shape), where)
  return [
    (size, f"{shape} over all chips, made in {where}")
    for (size, shape), where in sorted(found.items(), reverse=True)
  ]


def _made(jaxpr: Jaxpr, outer: str) -> Iterator[tuple[int, str, str]]:
  """(bytes, shape, where) of the results of `_STORED` at all depths."""
  for equation in jaxpr.eqns:
    stack = str(equation.source_info.name_stack)
    where = "/".join(part for part in (outer, stack) if part)
    if equation.primitive.name in _STORED:
      for result in equation.outvars:
        kind = result.aval
        size = math.prod(kind.shape) * kind.dtype.itemsize
        made = f"{where}/{equation.primitive.name}".lstrip("/")
        yield size, kind.str_short(), made
    for inner in _inside(_on_tpu(equation.params).values()):
      yield from _made(inner, where)


def _on_tpu(params: dict[str, Any]) -> dict[str, Any]:
  """Of a choice by platform the TPU's branch alone."""
  platforms = params.get("branches_platforms")
  if not platforms:
    return params
  at = next(i for i, p in enumerate(platforms) if p is None or "tpu" in p)
  return {"branches": params["branches"][at]}


def _inside(values) -> Iterator[Jaxpr]:
  """The programs among the parameters of an operation."""
  for value in values:
    if isinstance(value, Jaxpr):
      yield value
    elif isinstance(value, ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, tuple | list):
      yield from _inside(value)
