"""Rewards that depend on how long a completion is, in tokens."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxrl_mm.structs import Number


def overlong(
  completions: Sequence[str],
  answers: Sequence[str],
  *,
  count: Callable[[str], int],
  max_length: int,
  buffer: int,
) -> np.ndarray:
  """0 up to max_length - buffer tokens, falling to -1 at max_length.

  DAPO (https://arxiv.org/abs/2503.14476, equation 13); the same on the device
  is `algorithms.shape_overlong`.

  Args:
    completions: [B] texts.
    answers: not looked at.
    count: tokens of a text.
    max_length, buffer: in tokens.
  """
  del answers
  lengths = np.array([count(text) for text in completions], np.float32)
  return np.clip((max_length - buffer - lengths) / buffer, -1, 0)


def cosine(
  correct: ArrayLike,
  lengths: ArrayLike,
  *,
  max_length: int,
  right: tuple[Number, Number] = (2.0, 1.0),
  wrong: tuple[Number, Number] = (-10.0, 0.0),
  exceeded: Number = -10.0,
) -> np.ndarray:
  """Half a cosine from the first value at no tokens to the second at the last.

  Short right answers are worth more than long ones, and wrong ones less, so
  that hard questions are thought about longer
  (https://arxiv.org/abs/2502.03373).

  Args:
    correct: [B] true where the answer is right.
    lengths: [B] in tokens.
    max_length: in tokens.
    right, wrong: values at length 0 and at max_length.
    exceeded: value from max_length on.
  """
  correct = np.asarray(correct, bool)
  start, end = (np.where(correct, r, w) for r, w in zip(right, wrong))
  share = np.asarray(lengths) / max_length
  value = end + 0.5 * (start - end) * (1 + np.cos(np.pi * share))
  return np.where(share < 1, value, exceeded).astype(np.float32)
