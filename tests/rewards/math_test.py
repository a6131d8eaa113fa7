"""Answers graded as text, as numbers, as mathematics."""

import logging

import math_verify
import pytest

from jaxrl_mm.rewards import math as maths

tag = "<think>…</think><answer>{}</answer>".format


@pytest.mark.parametrize(
  "answer, truth, expected",
  [
    ("12", "12", 1),
    ("12.0", "12", 1),
    ("1/2", "0.5", 1),
    (r"\frac{1}{2}", "1/2", 1),
    ("x + 1", "1 + x", 1),
    (" 12 ", "12", 1),
    ("012", "12", 1),
    ("+12", "12", 1),
    ("12.", "12", 1),
    ("-12", "12", 0),
    ("12 or 13", "12", 0),
    ("12, 13", "12", 0),
    ("{12, 13}", "{13, 12}", 1),
    ("(12, 13)", "(13, 12)", 0),
    ("(12, 13)", "(12, 13)", 1),
    ("[0, 1)", "[0, 1)", 1),
    ("[0, 1]", "[0, 1)", 0),
    (r"\sqrt{8}", r"2\sqrt{2}", 1),
    (r"\sqrt{8}", r"3\sqrt{2}", 0),
    (r"\dfrac{2}{4}", "0.5", 1),
    ("50%", "0.5", 1),
    (r"2\pi", "6.28", 0),
    (r"\pi", "3.14159", 0),
    ("x^2 - 1", "(x-1)(x+1)", 1),
    ("x^2 + 1", "(x-1)(x+1)", 0),
    ("2x", "x", 0),
    ("x = 3", "3", 1),
    ("1,200", "1200", 1),
    ("1e3", "1000", 0),
    ("nan", "12", 0),
    (r"\frac{1}{0}", "12", 0),
    ("}{", "12", 0),
    (r"\frac{", "12", 0),
    ("13", "12", 0),
    ("", "12", 0),
    ("9" * 301, "12", 0),
  ],
)
def test_equality(answer, truth, expected):
  assert maths.exact([tag(answer)], [truth]).tolist() == [expected]
  assert maths.equal(answer, truth) == bool(expected)


def test_without_a_tag_it_is_wrong():
  assert maths.exact(["12"], ["12"]).tolist() == [0]


def test_a_failing_parser_is_never_right(monkeypatch, caplog):
  def fail(*args, **settings):
    raise RecursionError("too deep")

  monkeypatch.setattr(math_verify, "parse", fail)
  with caplog.at_level(logging.WARNING):
    assert not maths.equal("x + 1", "1 + x")
  assert "too deep" in caplog.text
  with pytest.raises(RecursionError):
    maths.exact([tag("x + 1")], ["1 + x"])


@pytest.mark.parametrize(
  "text",
  [
    "9^{9^{9}}",
    "9^9^9",
    "9**9**9",
    "9^{(9)*(9)^9}",
    r"9^{9 \cdot 9^9}",
    "(9^{999})^{9999}",
    "99999!",
    "((9!)!)!",
  ],
)
def test_numbers_that_nobody_can_write_are_not_computed(text, monkeypatch):
  monkeypatch.setattr(math_verify, "parse", None)
  assert not maths.equal(text, "3")


@pytest.mark.parametrize(
  "text, truth",
  [
    ("2^{10}", "1024"),
    (r"2^3 \cdot 5^2", "200"),
    ("(2^3)^2", "64"),
    ("5!", "120"),
    ("e^{x^2}", "e^{x^{2}}"),
  ],
)
def test_powers_that_are_small_are(text, truth):
  assert maths.equal(text, truth)
