"""Does the answer keep the form it was asked for?"""

import re
from collections.abc import Sequence

import numpy as np

_STRICT = re.compile(r"<think>.*?</think><answer>.*?</answer>\n?", re.DOTALL)
_LOOSE = re.compile(
  r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL
)


def r1(
  completions: Sequence[str], answers: Sequence[str], *, loose: bool = False
) -> np.ndarray:
  """1 where the whole text is `<think>…</think><answer>…</answer>`, else 0.

  The rule of R1-Reward (https://arxiv.org/abs/2505.02835): each opening tag
  occurs once and the contents are free, even empty.

  Args:
    completions: [B] texts.
    answers: not looked at.
    loose: False is the released code's rule, where nothing but one newline at
      the very end may stand around or between the parts; True allows white
      space there, as the paper's own example (figure 6) has it.
  """
  del answers
  form = _LOOSE if loose else _STRICT
  return np.array([_keeps(form, text) for text in completions], np.float32)


def _keeps(form: re.Pattern[str], text: str) -> bool:
  once = text.count("<think>") == text.count("<answer>") == 1
  return once and form.fullmatch(text) is not None


def answer_of(completion: str) -> str | None:
  """What stands in the first `<answer>` pair, stripped; None without one."""
  # Not a pattern: on many tags that never close those are slow.
  answer, closed, _ = completion.partition("<answer>")[2].partition("</answer>")
  return answer.strip() if closed else None
