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
