"""What a completion says about its picture and is not so.

Skywork R1V2 (https://arxiv.org/abs/2504.16656) reports a hallucination rate
and does not say how it is measured; these are two ways that need no judge.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)


def false_claims(
  completions: Sequence[str], facts: Sequence[str]
) -> np.ndarray:
  """Share of the digits the reasoning names that are not in the picture.

  Of `3+8=11` the claims are 3 and 8; what stands behind `=` is arithmetic, no
  claim. A digit named more often than it is there is false that often. A
  reasoning that names nothing claims nothing false, 0.

  Args:
    completions: [B] texts; the claims stand in `<think>`.
    facts: [B] the digits of each picture, with commas.
  """
  shares = (_false_share(c, f) for c, f in zip(completions, facts))
  return np.fromiter(shares, np.float32, len(completions))


def _false_share(completion: str, facts: str) -> float:
  found = _THOUGHT.search(completion)
  thought = found.group(1).partition("=")[0] if found else ""
  claims = Counter(re.findall(r"\d", thought))
  false = claims - Counter(re.findall(r"\d", facts))
  return false.total() / max(claims.total(), 1)
