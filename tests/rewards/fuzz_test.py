"""Ten thousand hostile strings for every grader of free text.

None may raise, none may get full marks, none may take long. The strings are
drawn from what graders look for, broken in all ways; the letters q and y and
the digit 7 are not among it, so that no truth below can be met by chance.

Graders that call a parser of mathematics or languages take milliseconds each
and see the first of the strings. All of them, in some minutes of all cores:
  FUZZ=10000 python -m pytest -n auto --dist load tests/rewards/fuzz_test.py
"""

import itertools
import os
import random
import time

import pytest

from jaxrl_mm.evaluate import equivalence, livebench, multimodal, pairwise
from jaxrl_mm.evaluate import text as text_
from jaxrl_mm.evaluate.items import Item
from jaxrl_mm.rewards import (
  calls,
  choice,
  code,
  consistency,
  final,
  hallucination,
  instructions,
  olympiad,
  tables,
  typed,
  yes_no,
)
from jaxrl_mm.rewards import format as form
from jaxrl_mm.rewards import math as maths

pytestmark = pytest.mark.usefixtures("unchecked")

COUNT = 10_000
# Strings that the dear graders see, in parts for as many processes.
PARSED = int(os.environ.get("FUZZ", 200))
PARTS = 10

PIECES = [
  *(r"\boxed{", r"\fbox {", "{", "}", "(", ")", "[", "]", "<<", ">>"),
  *(
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<solution>",
    "</solution>",
  ),
  *("**", "*", "***", "******", "#### ", "- ", "\n", "\n\n", "\r", "\t", " "),
  *("```python\n", "```json\n", "```\n", "```", "answer is ", "Answer: "),
  *(r"\frac{", r"\frac12", r"\sqrt{", r"\text{", r"\left(", r"\pm", "±", "$"),
  *("<table>", "<tr>", "<td>", "</td>", "|", "|--|"),
  *(r"\cup", r"\in ", r"\quad", r"\infty", r"\pi", r"\,", r"\%", "%", "^", "_"),
  *("1,000", "1.5", "-3", "−3", "1e9", "1e999", "9" * 50, "1/0", "0x1f", "5!"),
  *("nan", "inf", "None", "True", "null", "and ", "or ", "; ", ", ", ".", ":"),
  *("A", "(B)", "C.", "option D", "response 1", "f(a=1)", "f(", "=", "lambda:"),
  *("9^9^9", "10**10**10", "é", "½", "²", "𝟙", "٣", "\u200b", "\u2028", "\0"),
  *("\ud800", "\x1b[31m", "%s", "{}", "{0}", "\\", "'", '"', "`", "<", "&amp;"),
  *("SECTION 1", "P.S.", "Mr. ", "?!", "×", "°", "€", "cm", "x", "no"),
]
GIVEN = {
  "keywords": ["qq"],
  "keyword": "qq",
  "relation": "at least",
  "frequency": 1,
  "forbidden_words": ["no"],
  "letter": "q",
  "let_relation": "at least",
  "let_frequency": 10**6,
  "language": "qq",
  "num_sentences": 10**6,
  "num_paragraphs": 77,
  "num_words": 10**6,
  "nth_paragraph": 1,
  "first_word": "qq",
  "num_placeholders": 77,
  "postscript_marker": "Q.Q.",
  "num_bullets": 10**6,
  "num_highlights": 10**6,
  "section_spliter": "QUARTER",
  "num_sections": 1,
  "prompt_to_repeat": "qq",
  "end_phrase": "qq",
  "capital_relation": "at least",
  "capital_frequency": 10**6,
}
LANGUAGE = "language:response_language"
# These hold of some garbage, for that is what they ask.
FREE = {
  "keywords:forbidden_words",
  "detectable_format:title",
  "detectable_format:json_format",
  "combination:two_responses",
  "startend:quotation",
  "change_case:english_capital",
  "change_case:english_lowercase",
  "punctuation:no_comma",
}
TRUTHS = {"aime": "777", "imo": "7,77,777", "usamo": "7,77,777"}
TABLES = {
  "json": '[{"q": 7}]',
  "jsonl": '{"q": 7}',
  "csv": "q,y\n7,7",
  "tsv": "q\ty\n7\t7",
  "markdown": "|q|y|\n|--|--|\n|7|7|",
  "html": "<table><tr><th>q</th></tr><tr><td>7</td></tr></table>",
}
Q = Item("", "", "Q", choices=tuple("abcdefghijklmnopQ"))
NUMBER = Item("", "", "777", details={"answers": ["777", "7q"]})


def _calls(text):
  found = calls.calls_of(text)
  shape = {"type": "dict", "properties": {}, "required": []}
  functions = [{"name": "q", "parameters": shape}]
  return found is not None and calls.match(found, functions, [{"q": {}}])


def _olympiad(text):
  answers = olympiad.answers_of(text)
  return answers is not None and olympiad.equal(
    answers, ["777", "7q"], unit="m", tolerances=[0.5]
  )


def _kept(text):
  names = [n for n in instructions.CHECKS if n not in (*FREE, LANGUAGE)]
  given = [GIVEN] * len(names)
  return any(instructions.kept(text, names, given, loose=False))


def _free(text):
  names = [name for name in FREE if "english" not in name]
  instructions.kept(text, names, [GIVEN] * len(names), loose=False)


def _english(text):
  names = [name for name in FREE if "english" in name]
  instructions.kept(text, names, [GIVEN] * len(names), loose=False)


# Name -> text -> whether it got full marks. Cheap ones first.
CHEAP = {
  "final": lambda t: final.number(final.answer_of(t) or "") == 777,
  "list": lambda t: final.numbers(t) == [777],
  "typed": lambda t: any(
    typed.equal(t, "777", kind) for kind in ("integer", "float", "list", "text")
  ),
  "yes or no": lambda t: yes_no.pick(t) == "yes",
  "letter": lambda t: choice.letter([t], ["Q"])[0],
  "option": lambda t: multimodal.grade_letter(t, Q).score,
  "pair": lambda t: choice.pairwise([t], ["7"], untagged=True)[0],
  "judge": lambda t: pairwise.grade(t, Item("", "", "7")).score,
  "calls": _calls,
  "program": lambda t: code.program_of(t) == "q",
  "output": lambda t: code.same_output(t, "777"),
  "aime": lambda t: text_.grade_aime(t, NUMBER).score,
  "kept": _kept,
  "free": _free,
  "hallucination": lambda t: hallucination.false_claims([t], ["7"])[0] < 0,
  "verdict": lambda t: consistency.verdict_of(t) not in (-1, 0, 1),
  "format": lambda t: form.r1([t + "q"], [""], loose=True)[0],
  **{
    f"table {form}": lambda t, form=form: tables.equal(t, TABLES[form], form)
    for form in tables.FORMS
  },
  "equivalence": lambda t: not equivalence.prompt(t, NUMBER),
  **{
    f"livebench {name}": lambda t, name=name, rule=rule: (
      t and rule(t, TRUTHS.get(name, "q, quick")) == 1
    )
    for name, rule in livebench._BY_TRUTH.items()
    if rule is not livebench._expression
  },
}
DEAR = {
  "english": _english,
  "exact": lambda t: maths.exact([f"<answer>{t}</answer>"], ["7q"])[0],
  "equal": lambda t: maths.equal(t, "777"),
  "olympiad": _olympiad,
  "mmmu": lambda t: multimodal.grade_mmmu(t, NUMBER).score,
  "mathvision": lambda t: multimodal.grade_mathvision(t, NUMBER).score,
  "livebench math": lambda t: livebench._expression(t, "7q + 77"),
}


def strings(count, seed):
  rng = random.Random(seed)
  for _ in range(count):
    pieces = rng.choices(PIECES, k=rng.randint(0, 12))
    yield "".join(pieces) * rng.choice((1, 1, 1, 1, 2, 5))


def test_cheap_graders_give_nothing_for_garbage():
  """Of four strings one as it is, the others where an answer stands."""
  wraps = ("{}", r"\boxed{{{}}}", "<answer>{}</answer>", "Answer: {}")
  for wrap, text in zip(itertools.cycle(wraps), strings(COUNT, 0)):
    text = wrap.format(text)
    for name, grade in CHEAP.items():
      assert not grade(text), (name, text)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", DEAR)
def test_graders_with_a_parser_give_nothing_for_garbage(name, part):
  grade = DEAR[name]
  for text in itertools.islice(strings(PARSED, name), part, None, PARTS):
    assert not grade(text), text
    assert not grade(rf"\boxed{{{text}}}"), text


@pytest.mark.parametrize("name", [*CHEAP, *DEAR])
def test_long_strings_take_little_time(name):
  """A thousand times the same piece; a pattern that backtracks needs hours."""
  grade = (CHEAP | DEAR)[name]
  start = time.process_time()
  for piece in PIECES:
    assert not grade(piece * 1000 + "x"), piece
  # Of processor time; some 0.05 is usual.
  assert time.process_time() - start < 5
