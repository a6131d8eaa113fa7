import json
import re

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from jaxrl_mm.data import sources
from jaxrl_mm.data.sources import Digits, JsonLines, Sums
from jaxrl_mm.errors import InputError

SPLITS = {"train": 1297, "validation": 150, "test": 350}
NAMES = "zero one two three four five six seven eight nine".split()


# ------------------------------------------------------------------ digits
@pytest.fixture(scope="module")
def scans():
  """The bytes of each scan, as it appears in a picture, to its number."""
  data = sklearn.datasets.load_digits()
  grey = np.round(data.images * (255 / 16)).astype(np.uint8)
  numbers = {scan.tobytes(): i for i, scan in enumerate(grey)}
  return numbers, data.target


def _used(source, scans, count):
  """Numbers of the scans in the first examples, one list an example."""
  return [
    [
      scans[0][np.ascontiguousarray(part[..., 0]).tobytes()]
      for part in np.split(
        example.pictures[0], example.pictures[0].shape[1] // 8, axis=1
      )
    ]
    for example in map(source.__getitem__, range(count))
  ]


def test_the_splits_share_no_scan_and_use_them_all(scans):
  used = {
    split: set(sum(_used(Digits(split, size=6000, seed=0), scans, 6000), []))
    for split in SPLITS
  }
  assert {split: len(found) for split, found in used.items()} == SPLITS
  assert len(set.union(*used.values())) == sum(SPLITS.values()) == 1797


def test_held_out_scans_are_the_same_for_every_seed(scans):
  first, second = (
    set(sum(_used(Digits("validation", size=900, seed=seed), scans, 900), []))
    for seed in (0, 1)
  )
  assert first == second


@pytest.mark.parametrize("labelled", [10, 30, 200])
def test_the_labelled_subset_is_balanced(scans, labelled):
  source = Digits("train", size=2000, seed=3, labelled=labelled)
  used = set(sum(_used(source, scans, 2000), []))
  assert len(used) == labelled
  kinds = np.bincount(scans[1][list(used)], minlength=10)
  np.testing.assert_array_equal(kinds, labelled // 10)


def test_the_seed_chooses_the_labelled_subset(scans):
  subsets = [
    set(
      sum(
        _used(Digits("train", size=500, seed=seed, labelled=20), scans, 500),
        [],
      )
    )
    for seed in (0, 1)
  ]
  assert subsets[0] != subsets[1]


def test_more_labels_than_scans_is_an_error():
  with pytest.raises(InputError, match="151 labelled .* validation has 150"):
    Digits("validation", size=1, seed=0, labelled=151)


def test_an_example_depends_on_seed_and_number_alone():
  first, second = (Digits("train", size=9, seed=5) for _ in range(2))
  [second[i] for i in range(3)]
  same, again = first[7], second[7]
  np.testing.assert_array_equal(same.pictures[0], again.pictures[0])
  assert same._replace(pictures=()) == again._replace(pictures=())
  other = Digits("train", size=9, seed=6)[7]
  assert other.pictures[0].tobytes() != same.pictures[0].tobytes()
  assert same.name == "digits/train/7"


def test_answers_follow_from_the_pictures(scans):
  """Each answer and demonstration, worked out again from the labels."""
  source = Digits("train", size=300, seed=1)
  asked = set()
  for numbers, example in zip(
    _used(source, scans, 300), map(source.__getitem__, range(300))
  ):
    digits = [int(scans[1][i]) for i in numbers]
    assert len(digits) in (2, 3)
    many = re.fullmatch(r"How many (\w+)s\?", example.question)
    seen = ",".join(map(str, digits))
    if example.question == "What is the sum?":
      answer = sum(digits)
      thought = f"{'+'.join(map(str, digits))}={answer}"
    elif example.question == "Which is larger?":
      answer, thought = max(digits), seen
    else:
      answer, thought = digits.count(NAMES.index(many[1])), seen
    asked.add(many[1] if many else example.question)
    assert example.answer == str(answer)
    assert example.demonstration == (
      f"<think>{thought}</think><answer>{answer}</answer>"
    )
  assert len(asked) == 12


def test_pictures_are_grey_rgb_bytes():
  example = Digits("test", size=1, seed=0)[0]
  assert example.pictures[0].dtype == np.uint8
  assert example.pictures[0].shape[0::2] == (8, 3)
  assert (example.pictures[0] == example.pictures[0][..., :1]).all()
  assert example.pictures[0].max() > 200


# -------------------------------------------------------------- JSON lines
GOOD = {"image": "a.png", "question": "How many?", "answer": 3}


@pytest.fixture
def write(tmp_path):
  """Writes lines beside a picture and gives the path of the file."""
  Image.new("RGB", (4, 2), (10, 20, 30)).save(tmp_path / "a.png")

  def run(*lines):
    lines = [x if isinstance(x, str) else json.dumps(x) for x in lines]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)

  return run


def test_records_become_examples(write):
  path = write(GOOD, "", GOOD | {"demonstration": "One, two, three."})
  source = JsonLines(path)
  assert len(source) == 2
  assert source[0].pictures[0].shape == (2, 4, 3)
  assert source[0].pictures[0][0, 0].tolist() == [10, 20, 30]
  assert source[0][2:] == ("How many?", "3", "")
  assert source[1].demonstration == "One, two, three."
  # The name leads to the line, empty lines counted.
  assert [e.name for e in map(source.__getitem__, range(2))] == [
    f"{path}:1",
    f"{path}:3",
  ]


def test_grey_and_transparent_pictures_become_rgb(write, tmp_path):
  Image.new("LA", (3, 3), (7, 255)).save(tmp_path / "b.png")
  source = JsonLines(write(GOOD | {"image": "b.png"}))
  assert source[0].pictures[0].tolist() == [[[7, 7, 7]] * 3] * 3


def test_a_string_may_hold_any_letter(write):
  question = "中\u2028文\u0085?"
  line = json.dumps(GOOD | {"question": question}, ensure_ascii=False)
  assert JsonLines(write(line, GOOD))[0].question == question


def test_windows_line_ends_are_no_part_of_a_record(write):
  assert len(JsonLines(write(json.dumps(GOOD) + "\r", GOOD))) == 2


@pytest.mark.parametrize("missing", ["image", "question", "answer"])
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_record_without_a_field_names_line_and_field(write, missing, value):
  path = write(GOOD, GOOD | {missing: value})
  with pytest.raises(InputError) as error:
    JsonLines(path)
  assert str(error.value) == f"{path}:2: the record has no '{missing}'"


def test_a_field_that_is_not_there_is_named(write):
  path = write({"image": "a.png", "question": "How many?"})
  with pytest.raises(InputError, match="data.jsonl:1: .* no 'answer'"):
    JsonLines(path)


def test_a_record_that_is_no_object_is_named(write):
  with pytest.raises(InputError, match="data.jsonl:2: the record is no object"):
    JsonLines(write(GOOD, [1, 2]))


def test_a_record_may_have_no_picture_or_several(write):
  text = {k: v for k, v in GOOD.items() if k != "image"}
  source = JsonLines(write(text, GOOD | {"image": ["a.png", "a.png"]}))
  assert source[0].pictures == ()
  assert [p.shape for p in source[1].pictures] == [(2, 4, 3)] * 2
  with pytest.raises(InputError, match="image .*b.png does not exist"):
    JsonLines(write(GOOD | {"image": ["a.png", "b.png"]}))


def test_an_answer_of_zero_is_an_answer(write):
  assert JsonLines(write(GOOD | {"answer": 0}))[0].answer == "0"


def test_a_null_demonstration_is_none_at_all(write):
  source = JsonLines(write(GOOD | {"demonstration": None}))
  assert source[0].demonstration == ""


def test_a_line_that_is_not_json_is_named(write):
  with pytest.raises(InputError, match=r"data.jsonl:2: not JSON \(Expecting"):
    JsonLines(write(GOOD, "{'image': 1}"))


def test_a_missing_image_is_named_with_its_line(write, tmp_path):
  path = write(GOOD, GOOD | {"image": "gone.png"})
  with pytest.raises(InputError) as error:
    JsonLines(path)
  gone = tmp_path / "gone.png"
  assert str(error.value) == f"{path}:2: the image {gone} does not exist"


def _cut(data):
  return data[: len(data) // 2]


def _short(data):
  """The header says that it is a byte shorter than it is."""
  return data[:11] + bytes([12]) + data[12:]


@pytest.mark.parametrize(
  "damage", [lambda _: b"", lambda _: b"no picture", _cut, _short]
)
def test_an_unreadable_image_is_named_with_its_line(write, tmp_path, damage):
  rng = np.random.default_rng(0)
  noise = rng.integers(256, size=(40, 40, 3)).astype(np.uint8)
  Image.fromarray(noise).save(tmp_path / "b.png")
  (tmp_path / "b.png").write_bytes(damage((tmp_path / "b.png").read_bytes()))
  path = write(GOOD, GOOD | {"image": "b.png"})
  source = JsonLines(path)
  with pytest.raises(InputError) as error:
    source[1]
  assert str(error.value).startswith(
    f"{path}:2: cannot read the image {tmp_path / 'b.png'}: "
  )


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_an_empty_file_is_named(write, lines):
  path = write(*lines)
  with pytest.raises(InputError) as error:
    JsonLines(path)
  assert str(error.value) == f"the data file {path} holds no records"


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(InputError, match="cannot read the data file .*gone"):
    JsonLines(str(tmp_path / "gone.jsonl"))


def test_a_file_that_is_not_text_is_named(tmp_path):
  path = tmp_path / "data.jsonl"
  path.write_bytes(b"\xff\xfe\x00")
  with pytest.raises(InputError, match="cannot read the data file .*utf-8"):
    JsonLines(str(path))


# ------------------------------------------------------------- open_source
@pytest.mark.parametrize("split", SPLITS)
def test_a_config_names_a_split_of_the_digits(split):
  source = sources.open_source(f"digits/{split}", size=3, seed=0)
  assert len(source) == 3
  assert source[2].name == f"digits/{split}/2"


def test_a_config_names_a_file(write):
  assert len(sources.open_source(write(GOOD), size=9, seed=0)) == 1


def test_a_split_there_is_not_is_named():
  with pytest.raises(InputError, match="there is no 'digits/valid'"):
    sources.open_source("digits/valid", size=3, seed=0)


def test_a_record_without_demonstration_is_named_before_training(write):
  record = {"image": "a.png", "question": "q", "answer": "1"}
  source = JsonLines(write(record | {"demonstration": "d"}, record))
  with pytest.raises(InputError, match=":2: the record has no 'demonstration'"):
    sources.check_demonstrations(source)
  sources.check_demonstrations(Digits("train", size=9, seed=0))


# ------------------------------------------------------------------- sums
def test_sums_are_right_and_their_splits_apart():
  asked = {}
  for split in ("train", "validation", "test"):
    source = Sums(split, size=400, seed=1)
    examples = [source[i] for i in range(400)]
    pairs = [tuple(map(int, re.findall(r"\d+", e.question))) for e in examples]
    assert [sum(p) for p in pairs] == [int(e.answer) for e in examples]
    assert {n for p in pairs for n in p} <= set(range(10, 100))
    assert source[7] == examples[7]
    asked[split] = set(pairs)
  assert not asked["train"] & asked["test"]
  assert not asked["train"] & asked["validation"]
  assert sources.open_source("sums/test", size=3, seed=0)[0].pictures == ()
