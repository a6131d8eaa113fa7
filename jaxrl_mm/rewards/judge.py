"""Who answers a question put to a language model."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Judge(Protocol):
  """Any model that answers prompts."""

  def __call__(self, prompts: Sequence[str]) -> list[str]:
    """One reply for each prompt, in their order.

    Raises:
      JudgeDown: there will be no replies.
    """
    ...


class JudgeDown(RuntimeError):
  """A judge gave no replies. The step cannot be rewarded and has to fail."""


@dataclasses.dataclass(frozen=True)
class InProcess:
  """A model of this process.

  Attributes:
    generate: prompts to replies, such as a sampler between two tokenizer
      calls.
  """

  generate: Callable[[list[str]], list[str]]

  def __call__(self, prompts: Sequence[str]) -> list[str]:
    """See `Judge`."""
    replies = self.generate(list(prompts))
    if len(replies) != len(prompts):
      raise JudgeDown(f"{len(replies)} replies to {len(prompts)} prompts")
    return replies
