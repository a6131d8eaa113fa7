"""Does the reasoning lead to the answer that was given?

The consistency reward of R1-Reward (https://arxiv.org/abs/2505.02835, section
4.2): a text-only judge compares the end of the reasoning with the answer.
"""

import re
from collections.abc import Sequence

import numpy as np

from jaxrl_mm.rewards import choice
from jaxrl_mm.rewards import format as form
from jaxrl_mm.rewards.judge import Judge

_CONCLUSION_LINES = 3
_BETTER = re.compile(r"response (\d) is better", re.IGNORECASE)
_PROMPT = """\
You check whether two statements about a comparison of two responses agree. \
Be strict.

Statement 1, the end of an analysis:
{conclusion}

Statement 2, the verdict:
{answer}

Reply with the single digit 1 if both clearly favour the same response. Reply \
with the single digit 0 if they favour different responses, if statement 1 is \
ambiguous, or if it approves of both responses alike. Reply with nothing else.\
"""


def verdicts(
  completions: Sequence[str], judge: Judge, *, attempts: int = 3
) -> np.ndarray:
  """[B] 1 consistent, -1 not, 0 where the judge would not say.

  Args:
    completions: [B] reasonings with their answers.
    judge: whom to ask.
    attempts: how often to ask about a completion until the reply is clear.
  """
  result = np.zeros(len(completions), np.float32)
  asked = list(range(len(completions)))
  for _ in range(attempts):
    if not asked:
      break
    replies = judge([prompt(completions[i]) for i in asked])
    result[asked] = [verdict_of(reply) for reply in replies]
    asked = [i for i in asked if result[i] == 0]
  return result


def prompt(completion: str) -> str:
  """What the judge is asked about a completion."""
  return _PROMPT.format(
    conclusion=conclusion_of(completion), answer=answer_sentence(completion)
  )


def conclusion_of(completion: str) -> str:
  """The last three lines before the answer, joined by semicolons."""
  reasoning = completion.partition("<answer>")[0]
  lines = re.sub(r"</?think>", "\n", reasoning).split("\n")
  lines = [line.strip() for line in lines if line.strip()]
  return "; ".join(lines[-_CONCLUSION_LINES:])


def answer_sentence(completion: str) -> str:
  """The answer in words; the whole text where none is tagged."""
  answer = form.answer_of(completion)
  if answer is None:
    return completion
  number = choice.response_of(completion)
  if number is None:
    return answer
  return f"response {number} is better" if number in (1, 2) else "the same"


def verdict_of(reply: str) -> int:
  """1 or -1 for a reply that says 1 or 0, and 0 for one that says neither.

  A 0 anywhere outweighs a 1, as in the released code.
  """
  reply = reply.lower().replace("output:", "").strip()
  if "0" in reply:
    return -1
  return 1 if "1" in reply else 0


def by_rule(prompts: Sequence[str]) -> list[str]:
  """A judge without a model, for analyses that say "response 1 is better".

  Args:
    prompts: [B] what `prompt` gave.

  Returns:
    [B] "1" where the analysis prefers the response of the verdict and no
    other, else "0".
  """
  replies = []
  for text in prompts:
    analysis, _, verdict = text.rpartition("Statement 2")
    said, meant = (set(_BETTER.findall(part)) for part in (analysis, verdict))
    replies.append("1" if said == meant and len(said) == 1 else "0")
  return replies
