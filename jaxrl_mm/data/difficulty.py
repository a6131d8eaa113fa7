"""How hard questions were for a teacher, and the sources that follow from it.

The data of R1-Reward (https://arxiv.org/abs/2505.02835, section 4.3): a teacher
tries each question up to three times. Its right answers are imitated; what it
found hard is trained on.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrl_mm.data.sources import Example, Source, Subset
from jaxrl_mm.errors import InputError
from jaxrl_mm.structs import Number


class Label(NamedTuple):
  """One line of the file of labels.

  Attributes:
    number: of the question in its source.
    name: of the question, for people.
    answer: the truth.
    attempts: tries up to the first right one; all, where none was right.
    right: whether one was.
    trace: the right completion; empty where there is none.
  """

  number: int
  name: str
  answer: str
  attempts: int
  right: bool
  trace: str


def read_labels(path: Path) -> list[Label]:
  """The labels so far; a line cut short by a kill is left out."""
  if not path.exists():
    return []
  *whole, _ = path.read_text(encoding="utf-8").split("\n")
  return [Label(**json.loads(line)) for line in whole]


def shares(labels: Sequence[Label]) -> dict[str, Number]:
  """How many questions there are, and how many took how many attempts."""
  attempts = sorted({label.attempts for label in labels if label.right})
  solved = lambda n: [a.right and a.attempts == n for a in labels]
  return {
    "questions": len(labels),
    **{f"solved_at_{n}": sum(solved(n)) / len(labels) for n in attempts},
    "never_solved": sum(not a.right for a in labels) / len(labels),
  }


class Traced:
  """Questions with the teacher's right completions to imitate."""

  def __init__(self, source: Source, labels: Sequence[Label]):
    self._source = source
    self._labels = [label for label in labels if label.right]
    if not self._labels:
      raise InputError(
        f"the teacher was right on none of {len(labels)} questions; delete the "
        "run's folder 'difficulty' and take a better teacher, or take easier "
        "questions in another --workdir"
      )

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> Example:
    label = self._labels[index]
    return self._source[label.number]._replace(demonstration=label.trace)


def hard(source: Source, labels: Sequence[Label], fewest: int = 2) -> Subset:
  """The questions that took `fewest` attempts or more, or were never solved.

  Of each answer as many as of the rarest, the first ones: a teacher that leans
  to one answer finds the questions with the other hard, and a policy that is
  rewarded on those learns to give the other, whatever it sees.

  Raises:
    InputError: no question is hard, or none that has one of the answers.
  """
  chosen = {label.answer: [] for label in labels}
  for label in labels:
    if label.attempts >= fewest or not label.right:
      chosen[label.answer].append(label.number)
  sizes = {answer: len(numbers) for answer, numbers in chosen.items()}
  if not any(sizes.values()):
    raise InputError(
      f"all of {len(labels)} questions were solved in fewer than {fewest} "
      "attempts; choose another --workdir and label more of them or harder ones"
    )
  rarest = min(sizes, key=sizes.__getitem__)
  if not sizes[rarest]:
    raise InputError(
      f"none of the {sum(sizes.values())} hard questions has the answer "
      f"'{rarest}', for the teacher gives it whatever it sees; take a better "
      "teacher"
    )
  kept = [numbers[: sizes[rarest]] for numbers in chosen.values()]
  return Subset(source, sorted(sum(kept, [])))
