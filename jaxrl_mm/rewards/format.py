"""Does the answer keep the form it was asked for?"""

import re
from collections.abc import Sequence

import numpy as np

_R1 = re.compile(r"<think>.*?</think><answer>.*?</answer>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def r1(completions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
  """1 where the whole text is `<think>…</think><answer>…</answer>`, else 0.

  The rule of R1-Reward (https://arxiv.org/abs/2505.02835): nothing stands
  between the two parts or around them but white space, each opening tag
  occurs once, the contents are free.
  """
  del answers
  return np.array([_is_r1(text) for text in completions], np.float32)


def _is_r1(text: str) -> bool:
  once = text.count("<think>") == text.count("<answer>") == 1
  return once and _R1.fullmatch(text.strip()) is not None


def answer_of(completion: str) -> str | None:
  """What stands in the first `<answer>` pair, stripped; None without one."""
  found = _ANSWER.search(completion)
  return found.group(1).strip() if found else None
