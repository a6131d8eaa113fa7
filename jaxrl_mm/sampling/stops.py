"""Ends of answers that are strings, not tokens."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from jaxrl_mm.data.tokenizer import Tokenizer
from jaxrl_mm.errors import InputError

# (tokens of a row, how many of them were seen before) -> how many to keep.
Stop = Callable[[Int[np.ndarray, " N"], int], int | None]


def stop_strings(tokenizer: Tokenizer, strings: Sequence[str]) -> Stop:
  """A row ends with the token that completes one of the strings.

  Strings are looked for in the text, since a tokenizer can spell one in many
  ways. The token is kept whole, so that its log-prob stays true.

  Args:
    tokenizer: to read the rows.
    strings: any of them ends a row.
  """
  if not strings or not all(strings):
    raise InputError(f"stop strings are {strings!r}; give at least one letter")
  # A token is at least one byte: no string that ends in a new token begins
  # further back.
  reach = max(len(s.encode()) for s in strings)

  def stop(tokens, seen):
    begin = max(seen - reach, 0)

    def found(end):
      text = tokenizer.decode(tokens[begin:end], skip_special_tokens=False)
      return any(s in text for s in strings)

    if not found(len(tokens)):
      return None
    return next(end for end in range(seen + 1, len(tokens) + 1) if found(end))

  return stop
