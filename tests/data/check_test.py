import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from jaxrl_mm.data import __main__ as command
from jaxrl_mm.data import check, sources, tokenizer
from jaxrl_mm.errors import InputError

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def _picture(number, form="PNG"):
  buffer = io.BytesIO()
  array = np.full((2, 3 + number, 3), number, np.uint8)
  Image.fromarray(array).save(buffer, form)
  return buffer.getvalue()


def _record(number, question="What is it?", form="PNG", **change):
  return {
    "image": {"bytes": _picture(number, form), "path": "a.png"},
    "question": question,
    "chosen": f"good {number}",
    "rejected": "a bad one",
  } | change


RECORDS = [
  _record(0),
  _record(1, question=LONG),
  _record(2, chosen=None),
  _record(0),
  _record(3, image={"bytes": _picture(3)[:40], "path": "cut.png"}),
  _record(4, question=f"Well, {LONG.upper()}: and?"),
  _record(5),
  _record(6, image=None),
]


def _write(path, records):
  parquet.write_table(pyarrow.Table.from_pylist(records), path)
  return path


@pytest.fixture
def source(tmp_path):
  return f"rlaif-v:{_write(tmp_path / 'x.parquet', RECORDS)}"


@pytest.fixture
def evaluation(tmp_path):
  """The long question, and picture 5 in another format."""
  folder = tmp_path / "evaluation"
  folder.mkdir()
  records = [{"id": 1, "q": LONG, "nested": [_record(5, form="BMP")]}]
  _write(folder / "test.parquet", records)
  return folder


def test_everything_is_counted(source, evaluation):
  found = check.check(source, evaluation=[evaluation])
  assert (found.records, found.bad, found.duplicates) == (8, 2, 1)
  (name, reason), (second, why) = found.first_bad
  assert name.endswith("x.parquet:3") and second.endswith("x.parquet:5")
  assert reason == "'chosen' is missing and has to be a str"
  assert "cut.png" in why
  ((again, first),) = found.first_duplicates
  assert again.endswith(":4") and first.endswith(":1")
  assert found.unit == "words"
  assert found.lengths["question"]["most"] == 15
  assert found.lengths["question"]["below"] == [0, 0, 4, 0, 2]
  assert found.pictures["count"] == 5
  assert found.pictures["records_without"] == 1
  assert found.pictures["width"]["most"] == 8
  assert found.overlap == {
    "question": 1,
    "part of the question": 1,
    "picture": 1,
  }
  assert [name.rpartition(":")[2] for name, _ in found.first_overlap] == [
    "2",
    "6",
    "7",
  ]


def test_lengths_are_of_the_models_tokens(source, tmp_path):
  texts = [*sources.digits_texts(), "What is it good a bad one"]
  tokenizer.build(texts).save_pretrained(tmp_path / "model")
  found = check.check(source, model=str(tmp_path / "model"))
  assert found.unit == "tokens"
  assert found.lengths["worse"]["median"] == 3
  assert found.lengths["better"]["median"] == 2  # good, a digit with its space


def test_short_questions_are_no_overlap():
  short = "Find x."
  held = check.Held(set(), set(), set())
  check._gather({"a": short, "b": LONG}, Path(), held)
  assert check.overlap(short, [], held) == ""
  assert check.overlap("ONE, two!" + LONG[7:], [], held) == "question"
  chinese = "如图所示求三角形的面积是多少平方厘米"
  check._gather(chinese, Path(), held)
  assert check.overlap(f"解：{chinese}", [], held) == "part of the question"


def test_several_processes_find_the_same(source, monkeypatch):
  monkeypatch.setattr(check, "_CHUNK", 3)
  one, two = (check.check(source, processes=n) for n in (1, 2))
  assert one == two


def test_a_set_for_evaluation_must_be_there(source, tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="empty holds no file of records"):
    check.check(source, evaluation=[tmp_path / "empty"])


# ------------------------------------------------------------ command line
def _run(*args):
  """The exit code of the command, or its message."""
  with pytest.raises(SystemExit) as ended:
    command.main(args)
  return ended.value.code


def test_the_command_shows_what_it_found(source, evaluation, capsys):
  args = [source, "--eval", str(evaluation), "--processes", "1"]
  assert _run("check", *args) == 1
  out = " ".join(capsys.readouterr().out.split())
  for shown in (
    "of these bad │ 2",
    "of these repeated │ 1",
    "question, words: least 3, median 3",
    "x.parquet:3: 'chosen' is missing",
    "in an evaluation set: part of the question │ 1",
  ):
    assert shown in out


def test_the_command_writes_json(source, capsys):
  assert _run("check", source, "--processes", "1", "--json") == 1
  found = json.loads(capsys.readouterr().out)
  assert found["bad"] == 2 and found["pictures"]["height"]["most"] == 2


def test_a_good_set_ends_with_zero(tmp_path):
  path = _write(tmp_path / "x.parquet", RECORDS[:2])
  assert _run("check", f"rlaif-v:{path}", "--processes", "1") == 0


def test_a_mistake_is_one_sentence(tmp_path):
  message = _run("check", f"rlaif-v:{tmp_path}")
  assert message.startswith(f"error: {tmp_path} holds none of the files")
  assert "\n" not in message


def test_a_set_is_packed(tmp_path, capsys):
  path = _write(tmp_path / "good.parquet", RECORDS[:2])
  assert _run("pack", f"rlaif-v:{path}", str(tmp_path / "out")) == 0
  assert "2 records" in capsys.readouterr().out
