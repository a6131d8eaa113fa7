"""OlympiadBench's answers: several, with units, tolerances, intervals."""

import pytest

from jaxrl_mm.rewards import olympiad


def judged(response, truth, unit="", tolerances=()):
  answers = olympiad.answers_of(response)
  truths = olympiad.split(truth)
  return answers is not None and olympiad.equal(
    answers, truths, unit=unit, tolerances=tolerances
  )


@pytest.mark.parametrize(
  "response, truth, right",
  [
    (r"\boxed{2}", "2", True),
    (r"\boxed{2.0}", "$2$", True),
    (r"\boxed{3}", "2", False),
    (r"\boxed{2} is wrong, it is \boxed{2}", "2", True),
    (r"\boxed{2}, or \boxed{3}", "2", False),
    (r"$x=\boxed{1}$ and $y=\boxed{2}$", "1,2", True),
    (r"\boxed{2, 1}", "1,2", True),
    (r"\boxed{1}", "1,2", False),
    (r"\boxed{1,2,3}", "1,2", False),
    (r"\boxed{1,1}", "1,2", False),
    (r"\boxed{\pm 3}", "3,-3", True),
    (r"\boxed{3 \text{ and } -3}", r"\pm 3", True),
    (r"\boxed{3 \text{ or } 4}", "3", False),
    (r"\boxed{1,000}", "1000", True),
    (r"\boxed{\frac{1}{2}}", "0.5", True),
    (r"\boxed{50\%}", "0.5", True),
    (r"\boxed{50}", "0.5", False),
    (r"\boxed{\sqrt{8}}", r"$2 \sqrt{2}$", True),
    (r"\boxed{(x+1)^2}", "$x^2+2x+1$", True),
    (r"\boxed{(x+1)^2}", "$x^2+2x$", False),
    (r"\boxed{2x}", "2", False),
    (r"\boxed{y = 2x + 1}", "$y=2 x+1$", True),
    (r"\boxed{[0, 1)}", "[0,1)", True),
    (r"\boxed{[0, 1]}", "[0,1)", False),
    (r"\boxed{x \in [0, 0.5)}", r"$[0, \frac{1}{2})$", True),
    (r"\boxed{(2,3] \cup [0,1)}", r"$[0,1) \cup(2,3]$", True),
    (r"\boxed{[0,1)}", r"$[0,1) \cup(2,3]$", False),
    (r"\boxed{(1, 2)}", "(1,2)", True),
    (r"\boxed{(2, 1)}", "(1,2)", False),
    (r"\boxed{(1,2), (3,4)}", "$(3,4),(1,2)$", True),
    ("The answer is 2", "2", True),
    ("2", "2", False),
    ("", "2", False),
    (r"\boxed{}", "2", False),
    (r"\boxed{2", "2", False),
    (r"<think>\boxed{2}</think>", "2", False),
  ],
)
def test_equal(response, truth, right):
  assert judged(response, truth) == right


@pytest.mark.parametrize(
  "response, truth, unit, tolerances, right",
  [
    (r"\boxed{3.1 \text{ m}}", "3.14", "m", (0.1,), True),
    (r"\boxed{3.1}", "3.14", "m", (0.1,), True),
    (r"\boxed{3.0}", "3.14", "m", (0.1,), False),
    (r"\boxed{3.14}", "3.141", "", (), False),
    (r"\boxed{3.1 \text{ s}}", "3.1", "m", (0.1,), False),
    (r"\boxed{1.05, 9}", "1,10", "", (0.1, 2.0), True),
    (r"\boxed{1.5, 9}", "1,10", "", (0.1, 2.0), False),
    (r"\boxed{1, 10}", "1,10", "", (0.1, 2.0, 3.0), False),
    (r"\boxed{[0.01, 1]}", "[0,1]", "", (0.1,), True),
    (r"\boxed{12 \mathrm{~km} / \mathrm{h}}", "12", "km / h", (), True),
  ],
)
def test_units_and_tolerances(response, truth, unit, tolerances, right):
  assert judged(response, truth, unit, tolerances) == right
