"""Was the question answered with yes or with no?"""

import re

from jaxrl_mm.rewards import final

_FIRST = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_ANY = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def pick(response: str) -> str | None:
  """ "yes" or "no"; None where neither is said, or both are.

  The word that begins the final answer, else the one that begins what follows
  the thoughts, else the only one of the two that occurs there.
  """
  spoken = response.rpartition("</think>")[2]
  answer = final.answer_of(response)
  for text in (answer, spoken):
    match = _FIRST.match(text) if text else None
    if match:
      return match[1].lower()
  said = {word.lower() for word in _ANY.findall(answer or spoken)}
  return said.pop() if len(said) == 1 else None
