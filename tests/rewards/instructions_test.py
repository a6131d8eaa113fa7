"""The 25 instructions of IFEval, each kept and broken."""

import importlib

import pytest

from jaxrl_mm.errors import InputError
from jaxrl_mm.rewards import instructions

ENGLISH = "This is a plain sentence about the weather in the north of England"
AT_LEAST, LESS = "at least", "less than"

# (instruction, its arguments, text, whether it is kept)
CASES = [
  ("keywords:existence", {"keywords": ["cat", "dog"]}, "Dogs and CATS", True),
  ("keywords:existence", {"keywords": ["cat", "dog"]}, "Only cats", False),
  (
    "keywords:frequency",
    {"keyword": "cat", "relation": AT_LEAST, "frequency": 2},
    "Cat, cats",
    True,
  ),
  (
    "keywords:frequency",
    {"keyword": "cat", "relation": LESS, "frequency": 2},
    "Cat, cats",
    False,
  ),
  (
    "keywords:frequency",
    {"keyword": "a.b", "relation": AT_LEAST, "frequency": 1},
    "axb",
    False,
  ),
  ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "Concat", True),
  ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A Cat!", False),
  (
    "keywords:letter_frequency",
    {"letter": "z", "let_relation": AT_LEAST, "let_frequency": 2},
    "Zigzag",
    True,
  ),
  (
    "keywords:letter_frequency",
    {"letter": "Z", "let_relation": LESS, "let_frequency": 2},
    "Zigzag",
    False,
  ),
  ("language:response_language", {"language": "en"}, ENGLISH, True),
  ("language:response_language", {"language": "de"}, ENGLISH, False),
  (
    "language:response_language",
    {"language": "de"},
    "Das ist ein ganz gewöhnlicher Satz über das Wetter im Norden",
    True,
  ),
  (
    "length_constraints:number_sentences",
    {"relation": LESS, "num_sentences": 3},
    "Dr. Who came at 3.30 p.m. He left!",
    True,
  ),
  (
    "length_constraints:number_sentences",
    {"relation": AT_LEAST, "num_sentences": 3},
    "One. Two?! (Three.)",
    True,
  ),
  (
    "length_constraints:number_sentences",
    {"relation": AT_LEAST, "num_sentences": 2},
    "One, two and three",
    False,
  ),
  (
    "length_constraints:number_paragraphs",
    {"num_paragraphs": 2},
    "One\n***\nTwo",
    True,
  ),
  (
    "length_constraints:number_paragraphs",
    {"num_paragraphs": 2},
    "***\nOne\n***\nTwo\n***",
    True,
  ),
  (
    "length_constraints:number_paragraphs",
    {"num_paragraphs": 2},
    "One\n***\n***\nTwo",
    False,
  ),
  (
    "length_constraints:number_paragraphs",
    {"num_paragraphs": 2},
    "One\n\nTwo",
    False,
  ),
  (
    "length_constraints:number_words",
    {"relation": AT_LEAST, "num_words": 3},
    "One, two; three.",
    True,
  ),
  (
    "length_constraints:number_words",
    {"relation": LESS, "num_words": 3},
    "One two three",
    False,
  ),
  (
    "length_constraints:nth_paragraph_first_word",
    {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
    'First this.\n\n"Then, that.',
    True,
  ),
  (
    "length_constraints:nth_paragraph_first_word",
    {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "then"},
    "First this.\n\nThen that.",
    False,
  ),
  (
    "length_constraints:nth_paragraph_first_word",
    {"num_paragraphs": 1, "nth_paragraph": 4, "first_word": "then"},
    "Then.",
    False,
  ),
  (
    "detectable_content:number_placeholders",
    {"num_placeholders": 2},
    "Dear [name], at [place]",
    True,
  ),
  (
    "detectable_content:number_placeholders",
    {"num_placeholders": 2},
    "Dear [name]",
    False,
  ),
  (
    "detectable_content:postscript",
    {"postscript_marker": "P.S."},
    "Bye\nP. S. More",
    True,
  ),
  (
    "detectable_content:postscript",
    {"postscript_marker": "P.P.S"},
    "Bye\nP.S. More",
    False,
  ),
  (
    "detectable_format:number_bullet_lists",
    {"num_bullets": 3},
    "Some:\n* one\n- two\n  * three\nend",
    True,
  ),
  (
    "detectable_format:number_bullet_lists",
    {"num_bullets": 1},
    "**bold** text",
    False,
  ),
  (
    "detectable_format:constrained_response",
    {},
    "I think: My answer is maybe.",
    True,
  ),
  ("detectable_format:constrained_response", {}, "Maybe.", False),
  (
    "detectable_format:number_highlighted_sections",
    {"num_highlights": 2},
    "*one* and *two*",
    True,
  ),
  (
    "detectable_format:number_highlighted_sections",
    {"num_highlights": 1},
    "no ** ** stars",
    False,
  ),
  (
    "detectable_format:multiple_sections",
    {"section_spliter": "SECTION", "num_sections": 2},
    "SECTION 1\na\nSECTION 2\nb",
    True,
  ),
  (
    "detectable_format:multiple_sections",
    {"section_spliter": "SECTION", "num_sections": 2},
    "SECTION A\nSECTION 2",
    False,
  ),
  ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', True),
  ("detectable_format:json_format", {}, '{"a": 1}', True),
  ("detectable_format:json_format", {}, "{'a': 1}", False),
  ("detectable_format:json_format", {}, "see ```{}``` there", False),
  ("detectable_format:title", {}, "<<A Title>>\ntext", True),
  ("detectable_format:title", {}, "<<  >>\ntext", False),
  ("combination:two_responses", {}, "One\n******\nTwo", True),
  ("combination:two_responses", {}, "One\n******\nOne", False),
  ("combination:two_responses", {}, "One\n***\nTwo", False),
  (
    "combination:repeat_prompt",
    {"prompt_to_repeat": "Say hello."},
    "say hello. Hello!",
    True,
  ),
  (
    "combination:repeat_prompt",
    {"prompt_to_repeat": "Say hello."},
    "Hello! Say hello.",
    False,
  ),
  (
    "startend:end_checker",
    {"end_phrase": "Any more?"},
    '"So. any more?"',
    True,
  ),
  ("startend:end_checker", {"end_phrase": "Any more?"}, "Any more? No", False),
  ("startend:quotation", {}, ' "All of it" ', True),
  ("startend:quotation", {}, '"', False),
  (
    "change_case:capital_word_frequency",
    {"capital_relation": AT_LEAST, "capital_frequency": 2},
    "NASA and the WELL-KNOWN one",
    True,
  ),
  (
    "change_case:capital_word_frequency",
    {"capital_relation": LESS, "capital_frequency": 1},
    "NASA",
    False,
  ),
  ("change_case:english_capital", {}, ENGLISH.upper(), True),
  ("change_case:english_capital", {}, ENGLISH, False),
  ("change_case:english_lowercase", {}, ENGLISH.lower(), True),
  ("change_case:english_lowercase", {}, ENGLISH, False),
  ("punctuation:no_comma", {}, "No; none.", True),
  ("punctuation:no_comma", {}, "One, two", False),
]


@pytest.mark.parametrize("name, given, text, kept", CASES)
def test_kept(name, given, text, kept):
  pytest.importorskip("langdetect")
  assert instructions.kept(text, [name], [given], loose=False) == [kept]
  # What is kept strictly is kept loosely.
  assert instructions.kept(text, [name], [given], loose=True)[0] >= kept


def test_each_of_the_25_is_kept_once_and_broken_once():
  assert len(instructions.CHECKS) == 25
  for name in instructions.CHECKS:
    verdicts = {kept for other, _, _, kept in CASES if other == name}
    assert verdicts == {True, False}, name


@pytest.mark.parametrize(
  "text",
  ["Sure, here:\nplain", "plain\nBye, bye", "a, b\nplain\nc, d", "plain"],
)
def test_loosely_the_first_and_the_last_line_may_go(text):
  names = ["punctuation:no_comma"]
  assert instructions.kept(text, names, [{}], loose=True) == [True]


def test_loosely_stars_may_go():
  names, given = ["startend:end_checker"], [{"end_phrase": "the end."}]
  assert not instructions.kept("*The end.*", names, given, loose=False)[0]
  assert instructions.kept("*The end.*", names, given, loose=True)[0]


def test_an_empty_response_keeps_nothing():
  assert instructions.kept(
    " \n", ["punctuation:no_comma"], [{}], loose=True
  ) == [False]


def test_arguments_of_other_checks_are_left_out():
  given = {"num_words": 1, "relation": AT_LEAST, "keywords": None}
  names = ["length_constraints:number_words"]
  assert instructions.kept("one", names, [given], loose=False) == [True]


def test_without_langdetect_the_extra_is_named(monkeypatch):
  def missing(name):
    raise ModuleNotFoundError(name)

  monkeypatch.setattr(importlib, "import_module", missing)
  with pytest.raises(InputError, match=r"jaxrl_mm\[benchmarks\]"):
    instructions.detector_module()
