"""What is kept of batches, and what is made again."""

import pytest

from jaxrl_mm import preemption
from jaxrl_mm.preemption import Preempted
from jaxrl_mm.train import journal

ASKED = {"samples": 3, "stop": ("a",)}


def _keep(path, count=4, asked=ASKED):
  """The batches, and the starts of those that were made now."""
  made = []

  def make(start):
    made.append(start)
    return {"square": start**2, "third": start / 3}

  return journal.keep(path, asked, range(10, 10 + count), make), made


def test_a_batch_is_made_once(tmp_path):
  whole, made = _keep(tmp_path / "new" / "a.jsonl")
  assert made == [10, 11, 12, 13]
  assert whole[1] == {"square": 121, "third": 11 / 3}
  assert _keep(tmp_path / "new" / "a.jsonl") == (whole, [])


def test_asked_to_end_it_keeps_what_it_has(tmp_path, monkeypatch):
  whole, _ = _keep(tmp_path / "whole.jsonl")
  near = iter([False, True])
  monkeypatch.setattr(preemption, "is_near", lambda: next(near))
  with pytest.raises(Preempted, match="kept 1 of 4 batches of a.jsonl; "):
    _keep(tmp_path / "a.jsonl")
  monkeypatch.setattr(preemption, "is_near", lambda: False)
  assert _keep(tmp_path / "a.jsonl") == (whole, [11, 12, 13])


def test_half_a_line_is_made_again(tmp_path):
  whole, _ = _keep(tmp_path / "a.jsonl")
  text = (tmp_path / "a.jsonl").read_text()
  (tmp_path / "a.jsonl").write_text(text[:-5])
  assert _keep(tmp_path / "a.jsonl") == (whole, [13])
  assert (tmp_path / "a.jsonl").read_text() == text


def test_more_of_the_same_goes_on_and_something_else_begins_anew(tmp_path):
  path = tmp_path / "a.jsonl"
  few, _ = _keep(path, count=2)
  more, made = _keep(path)
  assert made == [12, 13] and more[:2] == few
  assert _keep(path, count=3) == (more[:3], [])
  assert _keep(path, asked={"samples": 4})[1] == [10, 11, 12, 13]
