"""What follows from a teacher's attempts."""

import json

import pytest

from jaxrl_mm.data import difficulty
from jaxrl_mm.data.difficulty import Label
from jaxrl_mm.data.sources import Example
from jaxrl_mm.errors import InputError

SOURCE = [Example(f"e{i}", (), f"q{i}", "1") for i in range(6)]
# Right at once, at the second try, at the third, and never.
LABELS = [
  Label(0, "e0", "1", 1, True, "trace 0"),
  Label(1, "e1", "1", 2, True, "trace 1"),
  Label(2, "e2", "2", 3, True, "trace 2"),
  Label(4, "e4", "2", 3, False, ""),
]


def test_right_traces_are_imitated():
  traced = difficulty.Traced(SOURCE, LABELS)
  shown = [(traced[i].question, traced[i].demonstration) for i in range(3)]
  assert shown == [("q0", "trace 0"), ("q1", "trace 1"), ("q2", "trace 2")]
  assert len(traced) == 3


def test_two_attempts_or_three_or_never_right_is_hard():
  hard = difficulty.hard(SOURCE, LABELS)
  # e4 has the answer of e2, and there is one hard question with the other.
  assert [hard[i].name for i in range(len(hard))] == ["e1", "e2"]
  # A question whose only try was wrong is hard too.
  more = [*LABELS, Label(3, "e3", "1", 1, False, "")]
  hard = difficulty.hard(SOURCE, more)
  assert [hard[i].name for i in range(len(hard))] == ["e1", "e2", "e3", "e4"]


def test_shares():
  assert difficulty.shares(LABELS) == {
    "questions": 4,
    "solved_at_1": 0.25,
    "solved_at_2": 0.25,
    "solved_at_3": 0.25,
    "never_solved": 0.25,
  }


def test_a_teacher_too_weak_or_questions_too_easy():
  with pytest.raises(InputError, match="right on none of 1 questions"):
    difficulty.Traced(SOURCE, LABELS[3:])
  with pytest.raises(InputError, match="all of 1 questions were solved"):
    difficulty.hard(SOURCE, LABELS[:1])
  # Right about all whose answer is 1, wrong about the others.
  with pytest.raises(InputError, match="2 hard questions has the answer '1'"):
    difficulty.hard(SOURCE, [LABELS[0], *LABELS[2:]])


def test_a_line_cut_short_is_not_read(tmp_path):
  path = tmp_path / "labels.jsonl"
  assert difficulty.read_labels(path) == []
  lines = [json.dumps(label._asdict()) + "\n" for label in LABELS]
  path.write_text("".join(lines)[:-9])
  assert difficulty.read_labels(path) == LABELS[:3]
