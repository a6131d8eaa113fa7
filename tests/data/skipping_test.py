import json

import pytest

from jaxrl_mm.data import skipping
from jaxrl_mm.data.skipping import Sound
from jaxrl_mm.errors import InputError


class Numbers:
  """0 to 9, of which some cannot be read."""

  def __init__(self, bad=()):
    self.bad = bad

  def __len__(self):
    return 10

  def __getitem__(self, index):
    if index in self.bad:
      raise InputError(f"{index} is bad")
    return index


def _fits(record):
  if record == 4:
    raise InputError("4 is too long")


def _sound(tell=lambda *args: None):
  return Sound(Numbers((3, 9)), _fits, tell)


def test_the_next_good_record_stands_for_a_bad_one():
  assert [_sound()[i] for i in range(10)] == [0, 1, 2, 5, 5, 5, 6, 7, 8, 0]
  assert len(_sound()) == 10


def test_bad_records_are_named_with_their_reason():
  told = []
  source = _sound(lambda *args: told.append(args))
  source[3]
  assert told == [(3, "3 is bad"), (4, "4 is too long")]


def test_a_source_without_a_good_record_is_an_error():
  with pytest.raises(InputError, match="none of 100 records .* bad"):
    Sound(Numbers(range(10)), _fits, lambda *args: None)[0]


def test_each_is_written_once_also_by_a_run_that_is_continued(tmp_path):
  path = tmp_path / "skipped.jsonl"
  for _ in range(2):
    source = _sound(skipping.make_tell(path, "numbers"))
    [source[i] for i in range(10)]
  with path.open("a") as file:
    file.write('{"source": "numb')  # killed
  tell = skipping.make_tell(path, "others")
  tell(3, "bad there too")
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert lines == skipping.read(path)
  assert [(x["source"], x["record"]) for x in lines] == [
    ("numbers", 3),
    ("numbers", 4),
    ("numbers", 9),
    ("others", 3),
  ]
  assert lines[1]["reason"] == "4 is too long"


def test_nothing_was_passed_over_before_something_was(tmp_path):
  assert skipping.read(tmp_path / "gone.jsonl") == []
