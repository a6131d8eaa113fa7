"""The final answer of a response, as text, as a number, as a list."""

import ast
import re
import warnings
from typing import Any

from jaxrl_mm.rewards import format as form

_SAID = re.compile(
  r"(?:answer\s*(?:is\s*:?|:)|####)\s*(\S[^\n]*)", re.IGNORECASE
)
_BRACE = re.compile(r"\\f?box(?:ed)?\s*\{|[{}]")
_WRAPPED = re.compile(
  r"\\(?:text|textbf|mathrm|mathbf|mathit|operatorname|mbox)\s*\{([^{}]*)\}"
)
# What is only typography, and what has a plain spelling.
_PLAIN = {
  "−": "-",
  "–": "-",
  "\\%": "%",
  "\\$": "",
  "$": "",
  "\\left": "",
  "\\right": "",
  "\\,": " ",
  "\\;": " ",
  "\\!": "",
  "\\ ": " ",
  "{,}": ",",
  "~": " ",
  "^{\\circ}": "°",
  "^\\circ": "°",
  "\\dfrac": "\\frac",
  "\\tfrac": "\\frac",
  "\\approx": "=",
  "≈": "=",
  "×": "\\times",
  "\\cdot": "\\times",
}
_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?"
# Words behind a number that are no unit but change its value.
_NO_UNIT = (
  r"(?!(?:[abceijknpqrtxyz]|pi|sin|cos|tan|log|ln|exp|sqrt|and|or|to|by|plus|"
  r"minus|times|hundred|thousand|million|billion|half)(?![A-Za-z]))"
)
_WORD = rf"{_NO_UNIT}[A-Za-zµΩ°²³]{{1,15}}(?:\^?\{{?-?\d?\}}?)"
_VALUE = re.compile(
  rf"""(?:[A-Za-z]\w*\s*=\s*|=\s*|about\s+|approximately\s+)?
  [€£¥]?\s*
  (?: (?P<sign>[-+]?)\s*\\frac\s*\{{?(?P<over>[-+.\d]+)\}}?\s*
      \{{?(?P<under>[-+.\d]+)\}}?
    | (?P<top>{_NUMBER})\s*/\s*(?P<bottom>{_NUMBER})
    | (?P<number>{_NUMBER})
      (?:\s*\\times\s*10\s*\^\s*\{{?\s*(?P<power>[-+]?\d{{1,3}})\s*\}}?
        |[eE](?P<exponent>[-+]?\d{{1,3}}))?
  )
  # A unit: up to three short words with their powers and strokes.
  \s*(?P<unit>[%°€]|{_WORD}(?:[\s/·*]+{_WORD}){{0,2}})?\s*""",
  re.VERBOSE,
)
# Answers are short; patterns and parsers are slow on what is not.
_LONGEST = 300


def answer_of(response: str) -> str | None:
  """The final answer; None where none is marked as such.

  What stands in the first `<answer>` pair, else in the last `\\boxed{}` after
  the thoughts, else behind the last "answer is" or "answer:".
  """
  text = form.answer_of(response)
  if text is not None:
    return text or None
  spoken = response.rpartition("</think>")[2]
  found = boxed(spoken) or _SAID.findall(spoken)
  text = found[-1].strip().strip("*").strip() if found else ""
  # "Answer: \boxed{" has a box that never closed.
  return text if text and "\\boxed" not in text else None


def boxed(text: str) -> list[str]:
  """Contents of all closed `\\boxed{}` and `\\fbox{}`, braces balanced.

  Of boxes in boxes the inner ones. One pass, however many never close.
  """
  contents, starts = [], []
  for match in _BRACE.finditer(text):
    if match[0] != "}":
      starts.append(match.end() if match[0] != "{" else None)
    elif starts and (start := starts.pop()) is not None:
      contents.append(text[start : match.start()].strip())
  return [content for content in contents if "\\boxed" not in content]


def plain(text: str) -> str:
  """Text without the marks of LaTeX that carry no meaning."""
  for mark, spelling in _PLAIN.items():
    text = text.replace(mark, spelling)
  return _WRAPPED.sub(r"\1", text).strip()


def words(text: str) -> str:
  """Text for comparison: small letters, single spaces, no marks around."""
  text = " ".join(plain(text).lower().split())
  return text.strip(" .,;:!?\"'`*()[]")


def number(text: str, *, bare: bool = False) -> float | None:
  """The value of a text that is one number, with or without a unit.

  Reads thousands commas, fractions, powers of ten, "x = 3", currency signs;
  "5%" is 5. None for anything else, as two numbers.

  Args:
    text: an answer.
    bare: refuse units other than a percent sign, where "2x" may stand.
  """
  if len(text) > _LONGEST:
    return None
  text = plain(text).lstrip(" ,;:*").rstrip(" .,;:*")
  match = _VALUE.fullmatch(text)
  if match is None or (bare and match["unit"] not in (None, "%")):
    return None
  try:
    return _value(match)
  except (ValueError, ZeroDivisionError, OverflowError):
    return None


def _value(match: re.Match[str]) -> float:
  read = lambda name: float(match[name].replace(",", ""))
  if match["over"]:
    sign = -1 if match["sign"] == "-" else 1
    return sign * read("over") / read("under")
  if match["bottom"] is not None:
    return read("top") / read("bottom")
  return read("number") * 10.0 ** int(match["power"] or match["exponent"] or 0)


def numbers(text: str) -> list[float] | None:
  """The values of a list of numbers such as "[1, 2.5]"; None if it is none."""
  if len(text) > _LONGEST:
    return None
  try:
    values = literal(plain(text).replace("\\", ""))
  except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
    return None
  if not isinstance(values, list | tuple):
    return None
  if any(type(value) not in (int, float) for value in values):
    return None
  return [float(value) for value in values]


def literal(text: str) -> Any:
  """A Python literal, as `ast.literal_eval` reads it.

  Without the warnings of the compiler, which nobody can act on.
  """
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    return ast.literal_eval(text)
