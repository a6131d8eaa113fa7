import base64
import io
import json
import pickle
import re

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from jaxrl_mm.data import loader, pack, sets
from jaxrl_mm.data.comparisons import R1_REWARD
from jaxrl_mm.errors import InputError
from jaxrl_mm.structs import Prompts


def picture(number=0):
  """The bytes of a PNG of 3 x 2 pixels, all of one value."""
  buffer = io.BytesIO()
  Image.fromarray(np.full((2, 3, 3), number, np.uint8)).save(buffer, "PNG")
  return buffer.getvalue()


def pair(number, **change):
  return {
    "image": {"bytes": picture(number), "path": f"{number}.png"},
    "question": f"question {number}",
    "chosen": f"good {number}",
    "rejected": f"bad {number}",
  } | change


@pytest.fixture
def folder(tmp_path):
  """RLAIF-V in two files, of five and four records."""
  for part, numbers in enumerate([range(5), range(5, 9)]):
    table = pyarrow.Table.from_pylist([pair(n) for n in numbers])
    path = tmp_path / f"RLAIF-V-Dataset_{part:03d}.parquet"
    parquet.write_table(table, path, row_group_size=2)
  return tmp_path


def test_a_set_is_opened_by_its_name_and_folder(folder):
  opened = sets.open_set(f"rlaif-v:{folder}")
  assert len(opened) == 9
  last = opened[8]
  assert last.question == "question 8"
  assert (last.better, last.worse) == ("good 8", "bad 8")
  np.testing.assert_array_equal(last.pictures[0], np.full((2, 3, 3), 8))
  assert last.name == f"{folder}/RLAIF-V-Dataset_001.parquet:4"
  one = sets.open_set(f"rlaif-v:{folder}/RLAIF-V-Dataset_001.parquet")
  assert [one[i].question for i in (0, 3)] == ["question 5", "question 8"]


def test_only_the_training_split_is_read(tmp_path):
  (tmp_path / "data").mkdir()
  for split, answer in [("train", "1"), ("test", "2")]:
    record = {"images": [], "problem": "q", "answer": answer}
    path = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([record]), path)
  opened = sets.open_set(f"geometry3k:{tmp_path}")
  assert [opened[i].answer for i in range(len(opened))] == ["1"]


def test_what_is_left_out_is_counted(tmp_path):
  turns = lambda answer: [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": answer},
  ]
  votes = ["model_a", "tie", "tie (bothbad)", "model_b", "whoever"]
  records = [
    {
      "winner": vote,
      "conversation_a": turns(f"a{n}"),
      "conversation_b": turns(f"b{n}"),
    }
    for n, vote in enumerate(votes)
  ]
  path = tmp_path / "train-0.parquet"
  parquet.write_table(pyarrow.Table.from_pylist(records), path)
  opened = sets.open_set(f"wildvision-battle:{tmp_path}")
  assert dict(opened.left_out) == {"tie": 2}
  assert [opened[i].better for i in (0, 1)] == ["a0", "b3"]
  with pytest.raises(InputError, match="train-0.parquet:5: 'winner' is 'whoev"):
    opened[2]


def test_mmpr_is_found_through_its_meta_file(tmp_path):
  for name, number in [("one", 1), ("two", 2)]:
    images = tmp_path / "images" / name
    images.mkdir(parents=True)
    (images / "x.png").write_bytes(picture(number))
    (tmp_path / "annotations").mkdir(exist_ok=True)
    record = pair(number, image="x.png")
    path = tmp_path / "annotations" / f"{name}.jsonl"
    path.write_text(json.dumps(record) + "\n")
  meta = {
    name: {
      "root": f"MMPR-v1.2/images/{name}",
      "annotation": f"MMPR-v1.2/annotations/{name}.jsonl",
    }
    for name in ("one", "two")
  }
  (tmp_path / "meta.json").write_text(json.dumps(meta))
  opened = sets.open_set(f"mmpr:{tmp_path}")
  shown = [int(opened[i].pictures[0][0, 0, 0]) for i in range(len(opened))]
  assert shown == [1, 2]
  (tmp_path / "meta.json").write_text("[]")
  with pytest.raises(InputError, match="meta.json does not name"):
    sets.open_set(f"mmpr:{tmp_path}")


def test_a_folder_of_pictures_has_a_file_of_questions(tmp_path):
  (tmp_path / "a.png").write_bytes(picture(7))
  record = {"file_name": "a.png", "question": "q", "answer": "3"}
  (tmp_path / "metadata.jsonl").write_text(json.dumps(record))
  example = sets.open_set(f"questions:{tmp_path}")[0]
  assert example.answer == "3" and example.pictures[0][0, 0, 0] == 7


def test_sets_are_joined(folder, tmp_path):
  path = tmp_path / "more.jsonl"
  path.write_text(json.dumps(pair(20, image=None)) + "\n")
  opened = sets.open_set(f"pairs:{path} + rlaif-v:{folder}")
  asked = [opened[i].question for i in (0, 1, 9)]
  assert asked == ["question 20", "question 0", "question 8"]
  assert len(opened) == 10
  with pytest.raises(InputError, match="joins pairs of responses with quest"):
    sets.open_set(f"rlaif-v:{folder} + questions:{path}")


@pytest.mark.parametrize(
  "name, message",
  [
    ("no-set:/x", "no data set 'no-set'; write SET:PATH, SET one of pairs, r1"),
    ("rlaif-v:/gone", "/gone holds none of the files of rlaif-v"),
  ],
)
def test_a_set_that_is_not_there_is_named(name, message):
  with pytest.raises(InputError, match=message):
    sets.open_set(name)


def test_a_bad_record_says_how_to_pass_over_it(tmp_path):
  cut = {"bytes": picture()[:40], "path": "a.png"}
  path = tmp_path / "x.parquet"
  parquet.write_table(pyarrow.Table.from_pylist([pair(0, image=cut)]), path)
  with pytest.raises(InputError, match="x.parquet:1: .*a.png.*skip_bad=True"):
    sets.open_set(f"rlaif-v:{path}")[0]


# --------------------------------------------------------------- in a config
def test_pairs_become_questions_to_a_judge(folder):
  source = sets.open_source(f"rlaif-v:{folder}", size=1, seed=0)
  assert [source[i].answer for i in range(4)] == ["1", "2", "1", "2"]
  assert source[1].question == R1_REWARD.format(
    question="question 1", first="bad 1", second="good 1"
  )
  both = sets.open_source(f"rlaif-v:{folder}", size=1, seed=0, both_orders=True)
  assert len(both) == 18


def test_names_that_are_no_sets_mean_what_they_meant(tmp_path):
  assert sets.open_source("sums/train", size=3, seed=0)[0].name.startswith(
    "sum"
  )
  assert len(sets.open_pairs("digit-pairs/train", size=4, seed=0)) == 4
  with pytest.raises(InputError, match="holds questions and no pairs"):
    sets.open_pairs("virl39k:/x", size=1, seed=0)


# ----------------------------------------------------------------- in grain
def _encode(example, number):
  asked = np.array([int(re.findall(r"question (\d+)", example.question)[0])])
  return Prompts(asked, asked > 0, None, np.int32(number))


def _draw(iterator, count):
  """Number of the question and of the draw, in each row of each batch."""
  batches = [next(iterator).arrays for _ in range(count)]
  return [list(zip(b.tokens[:, 0], b.group)) for b in batches]


def test_processes_read_parts_and_a_run_goes_on_where_it_was(folder):
  source = sets.open_source(f"rlaif-v:{folder}", size=1, seed=0)
  whole = _draw(loader.batches(source, _encode, 4, seed=3), 9)
  rows = range(2), range(2, 4)
  parts = [loader.batches(source, _encode, 4, seed=3, rows=r) for r in rows]
  begun = [_draw(part, 4) for part in parts]
  fresh = []
  for i, part in enumerate(parts):
    again = loader.batches(source, _encode, 4, seed=3, rows=rows[i])
    again.set_state(part.get_state())
    fresh.append(_draw(again, 5))
    assert fresh[-1] == _draw(part, 5)
  together = [
    [*a, *b] for a, b in zip(begun[0] + fresh[0], begun[1] + fresh[1])
  ]
  assert together == whole
  assert sorted(x for x, _ in sum(whole, [])[:9]) == list(range(9))


def test_a_set_is_sent_to_workers_without_its_files(folder):
  source = sets.open_source(f"rlaif-v:{folder}", size=1, seed=0)
  source[0]
  sent = pickle.dumps(source)
  assert len(sent) < 5000
  assert pickle.loads(sent)[8].question == source[8].question


# --------------------------------------------------------------------- pack
def test_a_packed_set_is_the_same(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(pack, "_PER_FILE", 4)
  out = tmp_path / "packed"
  assert pack.pack(f"rlaif-v:{folder}", out) == 9
  assert len(list(out.iterdir())) == 3
  before = sets.open_set(f"rlaif-v:{folder}")
  after = sets.open_set(f"pairs:{out}")
  assert len(after) == 9
  for one, two in zip(before, after):
    assert one[2:] == two[2:]
    np.testing.assert_array_equal(one.pictures, two.pictures)
  with pytest.raises(InputError, match="exists already"):
    pack.pack(f"rlaif-v:{folder}", out)


def test_packed_questions_keep_their_answers(tmp_path):
  record = {
    "image": base64.b64encode(picture(5)).decode(),
    "question": "q",
    "answer": "a",
    "demonstration": "d",
  }
  (tmp_path / "x.jsonl").write_text(json.dumps(record))
  pack.pack(f"questions:{tmp_path}/x.jsonl", tmp_path / "out")
  example = sets.open_set(f"questions:{tmp_path}/out")[0]
  assert example[2:] == ("q", "a", "d", "", ())
  assert example.pictures[0][0, 0, 0] == 5
