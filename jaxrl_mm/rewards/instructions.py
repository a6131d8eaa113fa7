"""Instructions whose keeping a rule can see: IFEval.

https://arxiv.org/abs/2311.07911. The 25 checks are written anew because the
packages that hold them fetch tokenizers when they run. Two differ a little from
the released ones, which use NLTK: sentences are split at their marks, knowing
common abbreviations, and words in capitals at spaces and punctuation. The
language checks need the extra `benchmarks`.
"""

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxrl_mm.errors import InputError

_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_SHORT = re.compile(
  r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Inc|Ltd|Co|vs|etc|e\.g|i\.e|Ph\.D|[A-Z])\."
)
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"')\]”’*]*+(?=\s|$)")
_FENCE = re.compile(r"\s*```(?:json)?(.*?)(?:```)?\s*", re.I | re.DOTALL)

Given = Mapping[str, Any]


def kept(
  response: str, names: Sequence[str], given: Sequence[Given], *, loose: bool
) -> list[bool]:
  """Whether a response keeps each of its instructions.

  Args:
    response: the text, without the thoughts.
    names: such as "length_constraints:number_words".
    given: the keyword arguments of each; None stands for none.
    loose: also try the text without its first or last line or both, and
      without asterisks, as section 3.3 of the paper has it.
  """
  texts = _versions(response) if loose else [response]
  return [
    any(text.strip() and CHECKS[name](text, _present(args)) for text in texts)
    for name, args in zip(names, given)
  ]


def _present(args: Given) -> Given:
  """Tables of all arguments hold None for those that are not this check's."""
  return {name: value for name, value in args.items() if value is not None}


def _versions(response: str) -> list[str]:
  lines = response.split("\n")
  cuts = [lines, lines[1:], lines[:-1], lines[1:-1]]
  texts = ["\n".join(cut).strip() for cut in cuts]
  return [response, *texts[1:], *(t.replace("*", "") for t in texts)]


def _compares(count: int, relation: str, bound: int) -> bool:
  return count < bound if relation == "less than" else count >= bound


# -------------------------------------------------------------- keywords
def _found(word: str, text: str) -> int:
  return len(re.findall(re.escape(word), text, re.IGNORECASE))


def _keywords(text: str, given: Given) -> bool:
  return all(_found(word, text) for word in given["keywords"])


def _frequency(text: str, given: Given) -> bool:
  count = _found(given["keyword"].strip(), text)
  return _compares(count, given["relation"], given["frequency"])


def _forbidden(text: str, given: Given) -> bool:
  words = map(re.escape, given["forbidden_words"])
  return not any(re.search(rf"\b{w}\b", text, re.IGNORECASE) for w in words)


def _letters(text: str, given: Given) -> bool:
  count = text.lower().count(given["letter"].lower())
  return _compares(count, given["let_relation"], given["let_frequency"])


# ---------------------------------------------------------------- length
def _sentences(text: str, given: Given) -> bool:
  masked = _SHORT.sub(lambda match: match[0].replace(".", ","), text)
  pieces = _SENTENCE_END.sub("\0", masked).split("\0")
  count = sum(any(c.isalnum() for c in piece) for piece in pieces)
  return _compares(count, given["relation"], given["num_sentences"])


def _paragraphs(text: str, given: Given) -> bool:
  parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
  # A divider may stand before the first and after the last, not twice between.
  if not all(parts[1:-1]):
    return False
  return sum(map(bool, parts)) == given["num_paragraphs"]


def _words(text: str, given: Given) -> bool:
  count = len(re.findall(r"\w+", text))
  return _compares(count, given["relation"], given["num_words"])


def _paragraph_word(text: str, given: Given) -> bool:
  parts = text.split("\n\n")
  nth, count = given["nth_paragraph"], sum(bool(p.strip()) for p in parts)
  if nth > count or not parts[nth - 1].strip():
    return False
  word = parts[nth - 1].split()[0].lstrip("'").lstrip('"')
  word = re.split(r"[.,?!'\"]", word)[0].lower()
  return (
    count == given["num_paragraphs"] and word == given["first_word"].lower()
  )


# --------------------------------------------------------------- content
def _placeholders(text: str, given: Given) -> bool:
  return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= given["num_placeholders"]


def _postscript(text: str, given: Given) -> bool:
  marker = given["postscript_marker"].strip()
  letters = [re.escape(x) for x in marker.replace(".", "").replace(" ", "")]
  known = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
  pattern = known.get(marker, r"\.?\s?".join(letters))
  return re.search(pattern, text, re.IGNORECASE) is not None


def _bullets(text: str, given: Given) -> bool:
  found = re.findall(r"^[^\S\n]*(?:\*[^*\n]|-).*$", text, re.MULTILINE)
  return len(found) == given["num_bullets"]


def _constrained(text: str, given: Given) -> bool:
  return any(option in text for option in _OPTIONS)


def _highlights(text: str, given: Given) -> bool:
  # As released: "**a**" also counts by the single stars it holds, if any.
  single = re.findall(r"\*[^\n*]*\*", text)
  double = re.findall(r"\*\*[^\n*]*\*\*", text)
  count = sum(bool(x.strip("*").strip()) for x in (*single, *double))
  return count >= given["num_highlights"]


def _sections(text: str, given: Given) -> bool:
  mark = re.escape(given["section_spliter"].strip())
  return len(re.findall(rf"{mark}\s?\d+", text)) >= given["num_sections"]


def _is_json(text: str, given: Given) -> bool:
  try:
    json.loads(_FENCE.fullmatch(text)[1] if "```" in text else text)
  except (ValueError, TypeError, RecursionError):
    return False
  return True


def _title(text: str, given: Given) -> bool:
  titles = re.findall(r"<<[^\n]{1,500}>>", text)
  return any(title.strip("<>").strip() for title in titles)


# ----------------------------------------------------- form of the whole
def _two_responses(text: str, given: Given) -> bool:
  parts = [part.strip() for part in text.split("******")]
  full = [part for part in parts if part]
  return all(parts[1:-1]) and len(full) == 2 and full[0] != full[1]


def _repeats(text: str, given: Given) -> bool:
  prompt = given["prompt_to_repeat"].strip().lower()
  return text.strip().lower().startswith(prompt)


def _ends(text: str, given: Given) -> bool:
  phrase = given["end_phrase"].strip().lower()
  return text.strip().strip('"').lower().endswith(phrase)


def _quoted(text: str, given: Given) -> bool:
  text = text.strip()
  return len(text) > 1 and text[0] == text[-1] == '"'


def _no_comma(text: str, given: Given) -> bool:
  return "," not in text


def _capital_words(text: str, given: Given) -> bool:
  words = re.findall(r"[\w'-]+", text)
  count = sum(word.isupper() for word in words)
  return _compares(count, given["capital_relation"], given["capital_frequency"])


def _capitals(text: str, given: Given) -> bool:
  return text.isupper() and _is_language(text, "en")


def _small_letters(text: str, given: Given) -> bool:
  return text.islower() and _is_language(text, "en")


def _language(text: str, given: Given) -> bool:
  return _is_language(text, given["language"])


def _is_language(text: str, code: str) -> bool:
  """A text without a feature of any language counts, as released."""
  detector = detector_module()
  # The detector draws; a grade must not.
  detector.DetectorFactory.seed = 0
  try:
    return detector.detect(text) == code
  except detector.LangDetectException:
    return True


def detector_module():
  """langdetect, which is optional.

  Raises:
    InputError: it is not installed.
  """
  try:
    return importlib.import_module("langdetect")
  except ImportError as error:
    raise InputError(
      "IFEval's checks of languages need langdetect; install the extra: pip "
      "install 'jaxrl_mm[benchmarks]'"
    ) from error


CHECKS: dict[str, Callable[[str, Given], bool]] = {
  "keywords:existence": _keywords,
  "keywords:frequency": _frequency,
  "keywords:forbidden_words": _forbidden,
  "keywords:letter_frequency": _letters,
  "language:response_language": _language,
  "length_constraints:number_sentences": _sentences,
  "length_constraints:number_paragraphs": _paragraphs,
  "length_constraints:number_words": _words,
  "length_constraints:nth_paragraph_first_word": _paragraph_word,
  "detectable_content:number_placeholders": _placeholders,
  "detectable_content:postscript": _postscript,
  "detectable_format:number_bullet_lists": _bullets,
  "detectable_format:constrained_response": _constrained,
  "detectable_format:number_highlighted_sections": _highlights,
  "detectable_format:multiple_sections": _sections,
  "detectable_format:json_format": _is_json,
  "detectable_format:title": _title,
  "combination:two_responses": _two_responses,
  "combination:repeat_prompt": _repeats,
  "startend:end_checker": _ends,
  "startend:quotation": _quoted,
  "change_case:capital_word_frequency": _capital_words,
  "change_case:english_capital": _capitals,
  "change_case:english_lowercase": _small_letters,
  "punctuation:no_comma": _no_comma,
}
