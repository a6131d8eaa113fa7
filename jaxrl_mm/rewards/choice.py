"""Was the right one of some choices picked?"""

import re
from collections.abc import Sequence

import numpy as np

from jaxrl_mm.rewards import final
from jaxrl_mm.rewards import format as form

_SAID = re.compile(r"answer\s*(?:is)?\s*:?\s*(\S[^\n]*)", re.IGNORECASE)
# "B", "(B)", "B.", "B) a cat", "option B"; "A cat" and "A or B" pick nothing.
_LETTER = re.compile(
  r"(?:(?:option|choice|answer)\s*)?\(?([a-z])\)?(?:[.:)].*|\s*)",
  re.IGNORECASE | re.DOTALL,
)
_NUMBER = re.compile(
  r"(?:the (?:better |best )?(?:answer|response) is:?\s*)?"
  r"(?:(?:response|answer)\s*)?([0-9]{1,9})(?:\.0*)?",
  re.IGNORECASE,
)
_LAST_NUMBER = re.compile(r"(?:.*\s)?([0-9]{1,9})(?:\.0*)?", re.DOTALL)


def letter(completions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
  """1 where the letter that was picked is the right one, else 0.

  Args:
    completions: [B] texts; the pick is read by `letter_of`.
    answers: [B] right letters.
  """
  picks = [letter_of(text) for text in completions]
  right = [answer.strip().upper() for answer in answers]
  return np.array([p == r for p, r in zip(picks, right)], np.float32)


def letter_of(completion: str) -> str | None:
  """The one letter picked, in upper case; None for none or several.

  It is read from the first `<answer>` pair, else the last `\\boxed{}`, else
  what follows the last "answer:", else the whole text.
  """
  text = form.answer_of(completion)
  if text is None:
    found = final.boxed(completion) or _SAID.findall(completion)
    text = found[-1] if found else completion
  text = re.sub(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}", r"\1", text)
  match = _LETTER.fullmatch(text.strip().strip("*$ "))
  return match.group(1).upper() if match else None


def option_of(completion: str, choices: Sequence[str]) -> str | None:
  """The letter picked among options, by letter or by the text of one.

  A letter beyond the options and a text that is none of them, or more than
  one, pick nothing. An option's number counts in any form: "0.5" is "1/2".
  """
  letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
  picked = letter_of(completion.rpartition("</think>")[2] or completion)
  answer = final.answer_of(completion)
  if picked is not None and picked in letters:
    return picked
  same = [a for a, c in zip(letters, choices) if answer and _same(answer, c)]
  return same[0] if len(same) == 1 else None


def _same(answer: str, option: str) -> bool:
  if final.words(answer) == final.words(option) != "":
    return True
  value = final.number(answer)
  return value is not None and value == final.number(option)


def pairwise(
  completions: Sequence[str],
  answers: Sequence[str | Sequence[str]],
  *,
  untagged: bool = False,
) -> np.ndarray:
  """1 where the better of several responses was named, else 0.

  The result reward of R1-Reward (https://arxiv.org/abs/2505.02835, section
  4.2). Text that names no single response is wrong.

  Args:
    completions: [B] texts of a judge of responses.
    answers: [B] the number of the better response, with or without `<answer>`
      tags; or several that are all right.
    untagged: False, the paper's, reads the number in the `<answer>` pair only;
      True, the released code's, falls back on a number that ends the text.
  """
  right = [
    {response_of(a, untagged=True) for a in ([x] if isinstance(x, str) else x)}
    for x in answers
  ]
  picks = [response_of(text, untagged=untagged) for text in completions]
  scores = [p is not None and p in r for p, r in zip(picks, right)]
  return np.array(scores, np.float32)


def response_of(completion: str, *, untagged: bool = False) -> int | None:
  """The number of the response that a text prefers; see `pairwise`."""
  text = form.answer_of(completion)
  if text is not None:
    match = _NUMBER.fullmatch(text)
  elif untagged and "<answer>" not in completion:
    spoken = completion.rpartition("</think>")[2].strip()
    match = _LAST_NUMBER.fullmatch(spoken)
  else:
    match = None
  return int(match.group(1)) if match else None
