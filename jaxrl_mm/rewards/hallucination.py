"""What a completion says about its picture and is not so.

Skywork R1V2 (https://arxiv.org/abs/2504.16656) reports a hallucination rate
and does not say how it is measured; these are two ways that need no judge.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


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


def yes_no(replies: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
  """Results of a probe set of questions "Is there a ... in the picture?".

  POPE (https://arxiv.org/abs/2305.10355): a model that sees things says yes
  too often. The last yes or no of a reply counts; one without either is
  wrong and no yes.

  Args:
    replies: [B] texts.
    truths: [B] "yes" or "no".

  Returns:
    `accuracy`; `precision`, `recall` and `f1` of yes; `yes_ratio`, the share
    of replies that say yes; `hallucination`, that share among those whose
    truth is no.
  """
  said = [(_YES_NO.findall(r) or [""])[-1].lower() for r in replies]
  truth = np.array([t.strip().lower() == "yes" for t in truths])
  yes, no = (np.array([s == word for s in said]) for word in ("yes", "no"))
  hits = np.sum(yes & truth)
  precision, recall = hits / max(yes.sum(), 1), hits / max(truth.sum(), 1)
  return {
    "accuracy": float(np.mean(np.where(truth, yes, no))),
    "precision": float(precision),
    "recall": float(recall),
    "f1": float(2 * precision * recall / max(precision + recall, 1e-9)),
    "yes_ratio": float(yes.mean()),
    "hallucination": float(np.sum(yes & ~truth) / max((~truth).sum(), 1)),
  }
