"""Pairs as questions to a judge: right, in both orders, and only by sight."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from jaxrl_mm.data import comparisons, sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.comparisons import Comparisons, DigitPairs, Pair
from jaxrl_mm.errors import InputError
from jaxrl_mm.rewards import choice, consistency
from jaxrl_mm.rewards import format as form
from jaxrl_mm.rewards.judge import InProcess

FORM = "{question}|{first}|{second}"


def _pairs(count):
  return [
    Pair(f"p{i}", (), f"q{i}", f"good{i}", f"bad{i}", ("sees 1", "sees 2"))
    for i in range(count)
  ]


def test_the_better_response_comes_first_in_every_other_pair():
  examples = [Comparisons(_pairs(4), FORM)[i] for i in range(4)]
  assert [e.answer for e in examples] == ["1", "2", "1", "2"]
  assert examples[0].question == "q0|good0|bad0"
  assert examples[1].question == "q1|bad1|good1"
  assert examples[1].demonstration == (
    "<think>sees 2\nresponse 2 is better</think><answer>2</answer>"
  )


def test_both_orders_show_each_pair_again_the_other_way_round():
  source = Comparisons(_pairs(3), FORM, both_orders=True)
  assert len(source) == 6
  for i in range(3):
    one, other = source[i], source[3 + i]
    assert {one.answer, other.answer} == {"1", "2"}
    question, first, second = one.question.split("|")
    assert other.question == f"{question}|{second}|{first}"
    assert other.question.split("|")[int(other.answer)] == f"good{i}"


def test_a_pair_without_an_analysis_has_no_demonstration():
  bare = [pair._replace(analyses=("", "")) for pair in _pairs(1)]
  assert Comparisons(bare, FORM)[0].demonstration == ""


# Digit pairs, 200 of them: enough for their shares.
PAIRS = DigitPairs("train", size=200, seed=3)


def _claims(text):
  """Digits by place, and the answer: "left 3, right 9: 12"."""
  places, answer = text.split(": ")
  return [p.split(" ") for p in places.split(", ")], answer


def test_the_better_digit_response_is_right_and_the_worse_is_not():
  kinds = {"digit": 0, "result": 0}
  for i in range(200):
    pair, truth = PAIRS[i], sources.Digits("train", size=200, seed=3)[i]
    facts = truth.facts.split(",")
    names = (
      ["left", "middle", "right"] if len(facts) == 3 else ["left", "right"]
    )
    there = [list(pair) for pair in zip(names, facts)]
    assert _claims(pair.better) == (there, truth.answer)
    said, answer = _claims(pair.worse)
    if said == there:
      assert abs(int(answer) - int(truth.answer)) == 1
      kinds["result"] += 1
      continue
    # Another digit, and what follows from it: no text betrays it.
    assert sum(a != b for a, b in zip(said, there)) == 1
    digits = [int(digit) for _, digit in said]
    assert answer == sources.solve(pair.question, digits)[1]
    kinds["digit"] += 1
  np.testing.assert_allclose(kinds["digit"] / 200, 0.9, atol=0.06)
  assert min(kinds.values()) > 5


def test_an_analysis_says_what_is_there_and_finds_fault_with_the_worse_alone():
  source = Comparisons(PAIRS, FORM)
  for i in range(100):
    example = source[i]
    assert choice.pairwise([example.demonstration], [example.answer]) == [1]
    assert form.r1([example.demonstration], [""]) == [1]
    verdict = consistency.verdicts(
      [example.demonstration], InProcess(consistency.by_rule)
    )
    assert verdict == [1]
    thought = example.demonstration.removeprefix("<think>")
    there, *reviews, _ = thought.split("\n")
    assert there == PAIRS[i].better
    said = [review.replace(" wrong", "") for review in reviews]
    assert said == example.question.split("|")[1:]
    # Every part that differs is marked, and no other.
    for review in reviews:
      parts = zip(*(re.split(", |: ", text) for text in (there, review)))
      assert all((a != b) == (b.endswith(" wrong")) for a, b in parts)
    faults = ["wrong" in review for review in reviews]
    assert faults == [example.answer == "2", example.answer == "1"]


def test_the_vocabulary_has_every_word_of_the_pairs():
  tokenizer = tok.build(comparisons.digit_pair_texts())
  source = comparisons.open_source("digit-pairs/train", size=200, seed=3)
  for i in range(200):
    text = source[i].question + source[i].demonstration
    ids = tokenizer.encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_the_same_pairs_every_time_and_others_in_other_splits():
  again, other = (
    DigitPairs(split, size=200, seed=3) for split in ("train", "test")
  )
  assert again[7].worse == PAIRS[7].worse
  assert other[7].name == "digit-pairs/test/7"
  assert not np.array_equal(other[7].pictures[0], PAIRS[7].pictures[0])


# ------------------------------------------------------------ JSON lines
def _file(tmp_path, *choices):
  Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
  lines = [
    {"image": "a.png", "question": f"q{i}", "answer1": "x", "answer2": "y"}
    | {"choice": choice}
    for i, choice in enumerate(choices)
  ]
  path = tmp_path / "pairs.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


def test_a_file_of_pairs_becomes_the_papers_prompt(tmp_path):
  source = comparisons.open_source(_file(tmp_path, 1, "1", 2), size=0, seed=0)
  examples = [source[i] for i in range(3)]
  # The file's own order is forgotten: the better one alternates.
  assert [e.answer for e in examples] == ["1", "2", "1"]
  shown = lambda e: re.findall(r"\[Response \d\]:\n(.*?)  \n", e.question)
  assert [shown(e) for e in examples] == [["x", "y"], ["y", "x"], ["y", "x"]]
  assert "A tie is not permitted" in examples[0].question
  assert examples[0].pictures[0].shape == (4, 4, 3)


def test_a_choice_is_1_or_2(tmp_path):
  with pytest.raises(InputError, match="pairs.jsonl:2: 'choice' is 3"):
    comparisons.open_source(_file(tmp_path, 1, 3), size=0, seed=0)


def test_sources_with_a_plus_between_them_take_turns():
  name = "digits/train + digit-pairs/train"
  source = comparisons.open_source(name, size=10, seed=0)
  assert len(source) == 20
  names = [source[i].name for i in (0, 1, 2, 19)]
  assert names[:3] == ["digits/train/0", "digit-pairs/train/0/1"] + [
    "digits/train/1"
  ]
  assert names[3].startswith("digit-pairs/train/9/")
  with pytest.raises(InputError, match="there is no 'digits/tran'"):
    comparisons.open_source("digits/tran + sums/train", size=1, seed=0)
