"""MathVista's typed equality, case by case."""

import pytest

from jaxrl_mm.rewards import typed


@pytest.mark.parametrize(
  "answer, truth, kind, decimals, right",
  [
    ("4", "4", "integer", 0, True),
    ("4.0", "4", "integer", 0, True),
    ("$4$", "4", "integer", 0, True),
    ("4 apples", "4", "integer", 0, True),
    ("1,000", "1000", "integer", 0, True),
    ("-2", "-2", "integer", 0, True),
    ("3.9", "3", "integer", 0, False),
    ("4", "5", "integer", 0, False),
    ("four", "4", "integer", 0, False),
    ("4 or 5", "4", "integer", 0, False),
    ("", "4", "integer", 0, False),
    ("1.2", "1.2", "float", 1, True),
    ("1.234", "1.2", "float", 1, True),
    ("1.26", "1.2", "float", 1, False),
    ("1.20", "1.2", "float", 1, True),
    (r"\frac{6}{5}", "1.2", "float", 1, True),
    ("1.2 cm", "1.2", "float", 1, True),
    ("0.285", "0.29", "float", 2, False),
    ("0.2851", "0.29", "float", 2, True),
    ("2", "2.0", "float", 2, True),
    ("1e999", "2.0", "float", 2, False),
    ("about 1.2", "1.2", "float", 1, True),
    ("[1, 2]", "[1, 2]", "list", 0, True),
    ("[1,2.0]", "[1, 2]", "list", 0, True),
    ("(1, 2)", "[1, 2]", "list", 0, True),
    ("1, 2", "[1, 2]", "list", 0, True),
    ("[2, 1]", "[1, 2]", "list", 0, False),
    ("[1]", "[1, 2]", "list", 0, False),
    ("[1, 2", "[1, 2]", "list", 0, False),
    ("[1, x]", "[1, 2]", "list", 0, False),
    ("Yes", "yes", "text", 0, True),
    ("**Yes.**", "Yes", "text", 0, True),
    (r"\text{Yes}", "Yes", "text", 0, True),
    ("yes, no", "yes", "text", 0, False),
    ("", "yes", "text", 0, False),
    ("", "", "text", 0, False),
  ],
)
def test_equal(answer, truth, kind, decimals, right):
  assert typed.equal(answer, truth, kind, decimals=decimals) == right
