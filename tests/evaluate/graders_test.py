"""Responses with known verdicts, thirty and more for each grader of answers.

Right, wrong, right in another form, unparseable, several boxes, units, ranges.
Graders with a file of their own in `tests/rewards` have their tables there.
"""

from pathlib import Path

import pytest

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import livebench, multimodal, pairwise, text
from jaxrl_mm.evaluate.items import Item
from jaxrl_mm.evaluate.records import Record

# What no grader may take for an answer.
NOTHING = [
  "",
  " \n",
  "I do not know.",
  r"\boxed{}",
  r"\boxed{",
  r"Answer: \boxed{12",
  "<answer></answer>",
  r"<think>\boxed{12}</think>",
  "12 is what it is not",
  "\\boxed{" * 50,
  "}{" * 50,
]


def item(answer, **details):
  return Item("", "", answer, details=details)


def table(cases):
  return pytest.mark.parametrize("response, truth, right", cases)


def score(grade, response, item):
  verdict = grade(response, item)
  assert verdict.score in (0, 1)
  return bool(verdict.score)


# ------------------------------------------------------------------ MMMU
@table(
  [
    (r"\boxed{12}", "12", True),
    (r"\boxed{12.0}", "12", True),
    (r"\boxed{12.004}", "12", True),
    (r"\boxed{12.04}", "12", False),
    (r"\boxed{-12}", "12", False),
    (r"\boxed{13}", "12", False),
    (r"\boxed{1,200}", "1200", True),
    (r"\boxed{\$1200}", "1200", True),
    (r"\boxed{1200 \text{ dollars}}", "1200", True),
    (r"\boxed{12 \text{ m/s}^2}", "12", True),
    (r"\boxed{12\%}", "12", True),
    (r"\boxed{\frac{1}{2}}", "0.5", True),
    (r"\boxed{1/3}", "0.33", True),
    (r"\boxed{1.2 \times 10^{3}}", "1200", True),
    (r"\boxed{\sqrt{2}}", r"$\sqrt{2}$", True),
    (r"\boxed{2\pi}", r"$2\pi$", True),
    (r"\boxed{2\pi}", "2", False),
    (r"\boxed{Mercury}", "mercury", True),
    (r"\boxed{\text{Mercury.}}", "Mercury", True),
    (r"\boxed{the planet Mercury}", "Mercury", False),
    (r"\boxed{Mercury or Venus}", "Mercury", False),
    (r"First \boxed{3}, then \boxed{12}", "12", True),
    (r"First \boxed{12}, then \boxed{3}", "12", False),
    ("The answer is 12.", "12", True),
    ("**Answer: 12**", "12", True),
    (r"<think>\boxed{3}</think>\boxed{12}", "12", True),
    ("12", "12", False),
    (r"\boxed{10 \text{ to } 12}", "12", False),
    (r"\boxed{x = 12}", "12", True),
    (r"\boxed{\approx 12}", "12", True),
    *[(response, "12", False) for response in NOTHING],
  ],
)
def test_mmmu_open(response, truth, right):
  question = item(truth, answers=[truth, "something else"])
  assert score(multimodal.grade_mmmu, response, question) == right


def test_mmmu_any_of_several_truths():
  question = item("", answers=["3", "three"])
  assert multimodal.grade_mmmu(r"\boxed{Three}", question).score == 1
  assert multimodal.grade_mmmu(r"\boxed{3.0}", question).score == 1
  assert multimodal.grade_mmmu(r"\boxed{four}", question).score == 0


# ------------------------------------------------------------- MathVista
CHOICES = ("145°", "35°", "yes", "0.5")


@table(
  [
    ("A", "145°", True),
    ("B", "145°", False),
    (r"\boxed{A}", "145°", True),
    (r"\boxed{(A)}", "145°", True),
    (r"\boxed{\text{A}}", "145°", True),
    (r"\boxed{A. 145°}", "145°", True),
    (r"\boxed{145°}", "145°", True),
    (r"\boxed{145^\circ}", "145°", True),
    (r"\boxed{145}", "145°", True),
    (r"\boxed{35}", "145°", False),
    (r"\boxed{E}", "145°", False),
    (r"\boxed{A, B}", "145°", False),
    (r"\boxed{A or B}", "145°", False),
    (r"\boxed{B} no, \boxed{A}", "145°", True),
    (r"\boxed{A} no, \boxed{B}", "145°", False),
    ("The answer is (A)", "145°", True),
    ("Answer: A", "145°", True),
    ("<answer>A</answer>", "145°", True),
    ("<think>A</think>B", "145°", False),
    ("C", "yes", True),
    (r"\boxed{Yes}", "yes", True),
    (r"\boxed{\text{yes}.}", "yes", True),
    (r"\boxed{no}", "yes", False),
    (r"\boxed{\frac{1}{2}}", "0.5", True),
    (r"\boxed{D}", "0.5", True),
    (r"\boxed{.50}", "0.5", True),
    (r"\boxed{0.51}", "0.5", False),
    *[(response, "145°", False) for response in NOTHING],
  ],
)
def test_mathvista_choice(response, truth, right):
  question = item(truth, kind="text", decimals=0)._replace(choices=CHOICES)
  assert score(multimodal.grade_mathvista, response, question) == right


# ------------------------------------------------------------ MathVision
@table(
  [
    (r"\boxed{12}", "12", True),
    (r"\boxed{12.0}", "12", True),
    (r"\boxed{12.00001}", "12", True),
    (r"\boxed{12.01}", "12", False),
    (r"\boxed{-12}", "12", False),
    (r"\boxed{\frac{24}{2}}", "12", True),
    (r"\boxed{24/2}", "12", True),
    (r"\boxed{12 \text{ cm}}", "12", True),
    (r"\boxed{12^{\circ}}", "12", True),
    (r"\boxed{x=12}", "12", True),
    (r"\boxed{3+4i}", "3+4i", True),
    (r"\boxed{4i+3}", "3+4i", True),
    (r"\boxed{3-4i}", "3+4i", False),
    (r"\boxed{\frac{\sqrt{3}}{2}}", r"\frac{\sqrt{3}}{2}", True),
    (r"\boxed{\frac{3}{2\sqrt{3}}}", r"\frac{\sqrt{3}}{2}", True),
    (r"\boxed{\sqrt{3}}", r"\frac{\sqrt{3}}{2}", False),
    (r"\boxed{2\pi}", r"2\pi", True),
    (r"\boxed{6.28}", r"2\pi", False),
    (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
    (r"\boxed{(x+1)^2}", "x^2+2x", False),
    (r"\boxed{1:2}", "1:2", True),
    (r"\boxed{(1,2)}", "(1,2)", True),
    (r"\boxed{(2,1)}", "(1,2)", False),
    (r"\boxed{[0,1]}", "[0,1]", True),
    (r"\boxed{[0,1)}", "[0,1]", False),
    (r"\boxed{11} or \boxed{12}", "12", True),
    (r"\boxed{12} or \boxed{11}", "12", False),
    ("The answer is 12", "12", True),
    ("<answer>12</answer>", "12", True),
    (r"\boxed{12, 13}", "12", False),
    *[(response, "12", False) for response in NOTHING],
  ],
)
def test_mathvision_open(response, truth, right):
  assert score(multimodal.grade_mathvision, response, item(truth)) == right


# ------------------------------------------------------------------ AIME
@table(
  [
    (r"\boxed{204}", "204", True),
    (r"\boxed{0204}", "204", True),
    (r"\boxed{204.0}", "204", True),
    (r"\boxed{204.5}", "204", False),
    (r"\boxed{-204}", "204", False),
    (r"\boxed{205}", "204", False),
    (r"\boxed{025}", "25", True),
    (r"\boxed{25}", "025", True),
    (r"\boxed{\frac{408}{2}}", "204", True),
    (r"\boxed{2.04 \times 10^2}", "204", True),
    (r"\boxed{204 \text{ minutes}}", "204", False),
    (r"\boxed{\text{204}}", "204", True),
    (r"\boxed{m+n=204}", "204", False),
    (r"\boxed{n=204}", "204", True),
    (r"\boxed{$204$}", "204", True),
    (r"\boxed{204.}", "204", True),
    (r"\boxed{203} \boxed{204}", "204", True),
    (r"\boxed{204} \boxed{203}", "204", False),
    ("Answer: 204", "204", True),
    ("The answer is **204**.", "204", True),
    ("The answer is $204$", "204", True),
    ("#### 204", "204", True),
    ("<answer>204</answer>", "204", True),
    ("<think>203</think><answer>204</answer>", "204", True),
    ("204", "204", False),
    (r"\boxed{204, 205}", "204", False),
    (r"\boxed{204 or 205}", "204", False),
    (r"\boxed{[200, 204]}", "204", False),
    (r"\boxed{two hundred and four}", "204", False),
    (r"\boxed{2x}", "2", False),
    (r"\boxed{204\%}", "204", True),
    *[(response, "12", False) for response in NOTHING],
  ],
)
def test_aime(response, truth, right):
  assert score(text.grade_aime, response, item(truth)) == right


# ------------------------------------------------------ pairs of responses
@pytest.mark.parametrize(
  "response, pick",
  [
    ("<answer>1</answer>", "1"),
    ("<answer>2</answer>", "2"),
    ("<think>1</think><answer>2</answer>", "2"),
    ("<think>…</think>\n<answer>1</answer>", "1"),
    ("<answer> 1 </answer>", "1"),
    ("<answer>\n2\n</answer>", "2"),
    ("<answer>1.0</answer>", "1"),
    ("<answer>2.</answer>", "2"),
    ("<answer>Response 1</answer>", "1"),
    ("<answer>response 2</answer>", "2"),
    ("<answer>Answer 2</answer>", "2"),
    ("<answer>The better response is: 2</answer>", "2"),
    ("<answer>The answer is 1</answer>", "1"),
    ("<answer>1</answer><answer>2</answer>", "1"),
    ("The better one is 2", "2"),
    ("2", "2"),
    ("<think>2</think>1", "1"),
    ("<answer>3</answer>", None),
    ("<answer>0</answer>", None),
    ("<answer>12</answer>", None),
    ("<answer>1/2</answer>", None),
    ("<answer>1 or 2</answer>", None),
    ("<answer>1, 2</answer>", None),
    ("<answer>-1</answer>", None),
    ("<answer>one</answer>", None),
    ("<answer>both</answer>", None),
    ("<answer>1", None),
    ("<answer>" + "1" * 5000 + "</answer>", None),
    ("1 is better than 2 is", None),
    ("Response A", None),
    (r"\boxed{1}", None),
    ("1!", None),
    *[(response, None) for response in NOTHING if "12" not in response],
  ],
)
def test_pair(response, pick):
  for truth in "12":
    verdict = pairwise.grade(response, item(truth))
    assert verdict == (float(pick == truth), pick, ())


# ------------------------------------------------------------- LiveBench
@pytest.mark.parametrize(
  "task, response, truth, points",
  [
    ("amc", "It is EEEEE", "E", 1),
    ("amc", "AAAAA, no: EEEEE", "E", 1),
    ("amc", r"\boxed{E}", "E", 1),
    ("amc", "**E**", "E", 1),
    ("amc", "so\nE", "E", 1),
    ("amc", r"\boxed{D}", "E", 0),
    ("amc", "Every E is there", "E", 0),
    ("aime", "**042**", "42", 1),
    ("aime", "so it is 042", "42", 1),
    ("aime", "043", "42", 0),
    ("AMPS_Hard", r"\boxed{\frac{1}{2}x}", r"$\frac{x}{2}$", 1),
    ("AMPS_Hard", r"\boxed{x^2 + C}", "$x^2$", 1),
    ("AMPS_Hard", r"\boxed{x^3}", "$x^2$", 0),
    ("AMPS_Hard", "x^2", "$x^2$", 0),
    ("imo", "Answer: 1, 2, 3", "1,2,3", 1),
    ("imo", "Answer: 1, 3, 2", "1,2,3", 1 / 3),
    ("imo", "Answer: 1, 2", "1,2,3", 2 / 3),
    ("web_of_lies_v2", "**yes, no, yes**", "yes, no, yes", 1),
    ("web_of_lies_v2", "**Yes, No, Yes**", "yes, no, yes", 1),
    ("web_of_lies_v2", "**yes, no, no**", "yes, no, yes", 0),
    ("zebra_puzzle", "<solution>dog, 3</solution>", "dog, 3", 1),
    ("zebra_puzzle", "<solution>dog, 4</solution>", "dog, 3", 0.25),
    ("spatial", "**tetrahedron**", "tetrahedron", 1),
    ("spatial", "**cube**", "tetrahedron", 0),
    ("connections", "**d, c, b, a, e, f, g, h**", "a,b,c,d,e,f,g,h", 1),
    ("connections", "**a, b, c, d, e, f, g, x**", "a,b,c,d,e,f,g,h", 0.5),
    ("typos", "Here: the  whole text.", "the whole text.", 1),
    ("typos", "<solution>the hole text.</solution>", "the whole text.", 0),
    (
      "plot_unscrambling",
      "<PLOT_SUMMARY>A man comes. He goes.</PLOT_SUMMARY>",
      "A man comes. He goes.",
      1,
    ),
    (
      "plot_unscrambling",
      "<PLOT_SUMMARY>He goes. A man comes.</PLOT_SUMMARY>",
      "A man comes. He goes.",
      0,
    ),
    ("plot_unscrambling", "Nothing of it.", "A man comes. He goes.", 0),
    ("cta", "**Country name**", "country_name", 0),
    ("cta", "countryname", "Country name", 1),
    ("tablejoin", "<solution>{'a': 'b'}</solution>", "{'a': 'b'}", 1),
    ("tablejoin", '```json\n{"a": "b", "c": null}\n```', "{'a': 'b'}", 1),
    ("tablejoin", "{'a': 'b', 'c': 'd'}", "{'a': 'b'}", 2 / 3),
    ("tablejoin", "{'a': 'x'}", "{'a': 'b'}", 0),
    ("tablejoin", "[a]", "{'a': 'b'}", 0),
  ],
)
def test_livebench(task, response, truth, points):
  question = item(truth, task=task, grader=task)
  assert livebench.grade(response, question).score == pytest.approx(points)
  thought = f"<think>{truth}</think>"
  assert livebench.grade(thought + response, question).score == pytest.approx(
    points
  )


@pytest.mark.parametrize(
  "response, points",
  [
    ("a,b\n1,2", 1),
    ("```csv\na,b\n1,2\n```", 1),
    ("First:\n```\na,b\n1,3\n```\nNo:\n```csv\na,b\n1,2\n```\nSo.", 1),
    ("<solution>\n```csv\nb,a\n2,1.0\n```\n</solution>", 1),
    ("<solution>a,b\n1,3</solution>```csv\na,b\n1,2\n```", 0),
    ("```csv\na,b\n1,2\n```\nor:\n```csv\na,b\n1,3\n```", 0),
    ("<think>a,b\n1,2</think>", 0),
    ("", 0),
  ],
)
def test_livebench_tables(response, points):
  question = item("a,b\n1,2\n", grader="tablereformat", form="csv")
  assert livebench.grade(response, question).score == points


@pytest.mark.parametrize(
  "question, form",
  [
    ("Please convert the Input Table from JSON format to CSV format.", "csv"),
    ("Source Format: CSV\nTarget Format: JSONL\n", "jsonl"),
    ("Convert this.", None),
    ("from CSV format to ODS format", None),
  ],
)
def test_livebench_forms(question, form):
  record = Record("file:1", {"turns": [question]}, Path("file"))
  if form:
    assert livebench._form(record) == form
  else:
    with pytest.raises(InputError, match="file:1: the question names no form"):
      livebench._form(record)


@pytest.mark.parametrize("task", livebench._BY_TRUTH)
def test_livebench_gives_nothing_for_nothing(task):
  truths = {"aime": "12", "imo": "1,2", "usamo": "1,2", "amc": "E", "smc": "E"}
  for response in ("", "I do not know.", "<solution></solution>"):
    question = item(truths.get(task, "a, b"), task=task, grader=task)
    assert livebench.grade(response, question).score == 0
