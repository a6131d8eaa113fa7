"""The final answer found, and read as a number or a list."""

import pytest

from jaxrl_mm.rewards import final


@pytest.mark.parametrize(
  "response, answer",
  [
    ("<think>4</think><answer> 5 </answer>", "5"),
    ("<answer></answer>", None),
    (r"so \boxed{4}, no: \boxed{5}", "5"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{a_{b_{c}}}", "a_{b_{c}}"),
    (r"\fbox{7}", "7"),
    (r"\boxed {8}", "8"),
    (r"\boxed{3", None),
    (r"Answer: \boxed{", None),
    ("The answer is 12.5", "12.5"),
    ("Answer: x\nFinal answer: **y**", "y"),
    ("#### 42", "42"),
    (r"<think>\boxed{1}</think> It is \boxed{2}", "2"),
    (r"<think>\boxed{1}</think> I do not know", None),
    ("no mark at all", None),
    ("", None),
  ],
)
def test_answer_of(response, answer):
  assert final.answer_of(response) == answer


def test_boxes_that_never_close_cost_little():
  assert final.boxed(r"\boxed{" * 20_000) == []


@pytest.mark.parametrize(
  "text, value",
  [
    ("12", 12),
    ("-3.50", -3.5),
    (".5", 0.5),
    ("5.", 5),
    ("−3", -3),
    ("1,200", 1200),
    ("1{,}200", 1200),
    ("1,20", None),
    ("$5$", 5),
    (r"\$5", 5),
    ("5%", 5),
    (r"5\%", 5),
    (r"\frac{1}{2}", 0.5),
    (r"-\dfrac{3}{4}", -0.75),
    (r"\frac12", 0.5),
    ("3/4", 0.75),
    ("1/0", None),
    ("3.5 cm", 3.5),
    (r"3.5\,\text{m/s}^2", 3.5),
    (r"120^{\circ}", 120),
    ("x = 5", 5),
    (r"\approx 5", 5),
    (r"2.5 \times 10^{-3}", 0.0025),
    ("2e3", 2000),
    ("1e999", None),
    ("4 apples.", 4),
    ("2x", None),
    (r"2\pi", None),
    ("2 pi", None),
    ("3 sin x", None),
    ("5 million", None),
    ("3 or 4", None),
    ("12 and 3", None),
    ("three", None),
    ("nan", None),
    ("inf", None),
    ("", None),
    ("9" * 400, None),
  ],
)
def test_number(text, value):
  found = final.number(text)
  assert found == (None if value is None else pytest.approx(value))


def test_a_bare_number_has_no_unit():
  assert final.number("5 cm", bare=True) is None
  assert final.number("5%", bare=True) == 5


@pytest.mark.parametrize(
  "text, values",
  [
    ("[1, 2.5]", [1, 2.5]),
    (r"\left[1, -2\right]", [1, -2]),
    ("(0, 0)", [0, 0]),
    ("[1, 'a']", None),
    ("[True]", None),
    ("1, 2", [1, 2]),
    ("5", None),
    ("[" * 200, None),
    ("__import__('os')", None),
  ],
)
def test_numbers(text, values):
  assert final.numbers(text) == values
