"""A penalty on saying the same again."""

from collections.abc import Sequence

import numpy as np

from jaxrl_mm.structs import Number


def ngrams(
  completions: Sequence[str],
  answers: Sequence[str],
  *,
  n: int = 3,
  most: Number = -1.0,
) -> np.ndarray:
  """most * (1 - distinct n-grams / n-grams), over lower-case words.

  https://arxiv.org/abs/2502.03373; R1-Reward's code has it with
  these numbers.

  Args:
    completions: [B] texts; one of fewer than n words has zero.
    answers: not looked at.
    n: words a gram.
    most: what a text of nothing but repetition comes close to.
  """
  del answers
  shares = [_repeated(text.lower().split(), n) for text in completions]
  return most * np.array(shares, np.float32)


def _repeated(words: list[str], n: int) -> float:
  grams = list(zip(*(words[i:] for i in range(n))))
  return 1 - len(set(grams)) / len(grams) if grams else 0.0
