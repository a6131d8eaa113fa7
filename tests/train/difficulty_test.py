"""A teacher tries until it is right; a kill costs nothing but a batch."""

import jax
import numpy as np
import pytest

from jaxrl_mm.data import difficulty
from jaxrl_mm.data.difficulty import Label
from jaxrl_mm.data.sources import Example
from jaxrl_mm.rewards import choice
from jaxrl_mm.rewards.endpoint import Endpoint
from jaxrl_mm.train import difficulty as labelling
from jaxrl_mm.train.difficulty import DifficultyConfig

PICTURE = np.zeros((2, 3, 3), np.uint8)
SOURCE = [Example(f"e{i}", (PICTURE,), f"q{i}", "1") for i in range(10)]
CONFIG = DifficultyConfig(questions=10, batch=4)
RIGHT, WRONG = "<answer>1</answer>", "<answer>2</answer>"


class Teacher:
  """Right about question i at try i % 4 + 1, that is never for i = 3, 7."""

  def __init__(self):
    self.asked, self.keys = {}, set()

  def __call__(self, examples, key):
    self.keys.add(tuple(jax.random.key_data(key).tolist()))
    for example in examples:
      self.asked[example.name] = self.asked.get(example.name, 0) + 1
    return [self._say(example.name) for example in examples]

  def _say(self, name):
    solved = self.asked[name] == int(name[1:]) % 4 + 1
    return f"{name}: {RIGHT if solved else WRONG}"


def _label(path, teacher):
  labelling.make_labels(teacher, CONFIG, SOURCE, choice.pairwise, path, seed=0)
  return path.read_text()


def test_attempts_until_right_are_the_difficulty(tmp_path):
  teacher = Teacher()
  _label(tmp_path / "labels.jsonl", teacher)
  labels = difficulty.read_labels(tmp_path / "labels.jsonl")
  assert [label.number for label in labels] == list(range(10))
  assert [label.attempts for label in labels] == [1, 2, 3, 3, 1, 2, 3, 3, 1, 2]
  assert [label.number for label in labels if not label.right] == [3, 7]
  assert labels[2] == Label(2, "e2", "1", 3, True, f"e2: {RIGHT}")
  assert labels[3].trace == ""
  # A question that is solved is not asked again.
  assert list(teacher.asked.values()) == [1, 2, 3, 3, 1, 2, 3, 3, 1, 2]
  # Three batches; the last of two questions is done after two tries.
  assert len(teacher.keys) == 3 + 3 + 2


@pytest.mark.parametrize("kept", [0, 100, 700])
def test_killed_anywhere_it_ends_with_the_same_file(tmp_path, kept):
  whole = _label(tmp_path / "whole" / "labels.jsonl", Teacher())
  path = tmp_path / "killed" / "labels.jsonl"
  path.parent.mkdir()
  path.write_text(whole[:kept])
  teacher = Teacher()
  assert _label(path, teacher) == whole
  # Batches that were whole are not asked again.
  lines = whole[:kept].count("\n")
  assert min(teacher.asked, default="e9") == f"e{lines - lines % 4}"


def test_the_first_process_says_what_is_right(tmp_path, monkeypatch):
  """As the second of two, whose own rule would find other answers right."""
  first = lambda text: "[1.0, 1.0, 1.0, 1.0]" if text == "[]" else text
  monkeypatch.setattr(labelling.sharding, "of_first_process", first)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  teacher, path = Teacher(), tmp_path / "labels.jsonl"
  labelling.make_labels(teacher, CONFIG, SOURCE, choice.pairwise, path, seed=0)
  assert list(teacher.asked.values()) == [1] * 10
  assert not path.exists()


def test_a_finished_stage_asks_nobody(tmp_path):
  path = tmp_path / "labels.jsonl"
  whole, teacher = _label(path, Teacher()), Teacher()
  assert _label(path, teacher) == whole
  assert max(teacher.asked, default="e8") == "e9" or not teacher.asked


def test_a_teacher_behind_an_endpoint_sees_the_pictures(tmp_path, serve):
  def reply(prompt, times):
    return RIGHT if (prompt, times) in {("q0", 1), ("q1", 2)} else WRONG

  path = tmp_path / labelling.LABELS
  config = DifficultyConfig(
    questions=3, batch=4, teacher=Endpoint("", temperature=1.0)
  )
  with serve(reply) as server:
    teacher = labelling.endpoint_teacher(Endpoint(server.url, temperature=1.0))
    labelling.make_labels(
      teacher, config, SOURCE, choice.pairwise, path, seed=0
    )
  labels = difficulty.read_labels(path)
  assert [(x.attempts, x.right) for x in labels] == [
    (1, True),
    (2, True),
    (3, False),
  ]
  assert server.asked == {"q0": 1, "q1": 2, "q2": 3}
  request = server.requests[0]
  assert request["temperature"] == 1.0
  kinds = [part["type"] for part in request["messages"][0]["content"]]
  assert kinds == ["image_url", "text"]
