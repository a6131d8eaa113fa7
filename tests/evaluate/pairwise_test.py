"""Judges' benchmarks: layouts, categories, and rows that papers print.

R1-Reward's rows are whole counts over the benchmarks' sizes, so the metric
functions have to give its printed percents when they get those counts.
"""

import json

import numpy as np
import pytest
from PIL import Image

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import pairwise, published
from jaxrl_mm.evaluate.items import Item, Verdict

PAIR = Item("x", "q", "1", responses=("good", "bad"))


def made(counts):
  """Items and verdicts with `{category: (right, all)}`."""
  items, verdicts = [], []
  for category, (right, total) in counts.items():
    items += [PAIR._replace(category=category)] * total
    verdicts += [Verdict(float(i < right), "1") for i in range(total)]
  return items, verdicts


def percent(found):
  return {name: round(100 * value, 2) for name, value in found.items()}


# ------------------------------------------------ rows of R1-Reward, table 3
FAULTY = {
  "general": (309, 484),
  "hallucination": (384, 448),
  "reasoning": (206, 318),
}


def test_vl_rewardbench_row_under_the_faulty_categories():
  found = percent(pairwise.vl_metric(*made(FAULTY)))
  row = published.PUBLISHED["vl_rewardbench"][1]["R1-Reward"]
  assert found == {
    "overall": row["overall"],
    "macro": pytest.approx(row["released-macro"], abs=0.011),
    "general": row["released-general"],
    "hallucination": row["released-hallucination"],
    "reasoning": row["reasoning"],
  }


@pytest.mark.parametrize("moved", [126, 180, 220, 301])
def test_vl_rewardbench_row_under_the_right_categories(moved):
  """Of the 301 miscounted pairs `moved` were right; how many is not printed.

  Whatever it is, overall and reasoning stay, and the rest changes.
  """
  right = {
    "general": (309 - moved, 183),
    "hallucination": (384 + moved, 749),
    "reasoning": (206, 318),
  }
  found = percent(pairwise.vl_metric(*made(right)))
  assert (found["overall"], found["reasoning"]) == (71.92, 64.78)
  assert found["macro"] != pytest.approx(71.44, abs=0.01)


@pytest.mark.parametrize(
  "name, category",
  [
    ("RLAIF-V-12", "hallucination"),
    ("RLHF-V-3", "hallucination"),
    ("hallucination_pair-1", "hallucination"),
    ("mathverse_4", "reasoning"),
    ("mmmu_pro_9", "reasoning"),
    ("wildvision-battle-5", "general"),
    ("1234", "general"),
  ],
)
def test_vl_categories(name, category):
  assert pairwise.vl_category(name) == category


def test_multimodal_rewardbench_row():
  counts = {
    "correctness": (483, 623),
    "preference": (484, 654),
    "knowledge": (472, 630),
    "reasoning/math": (427, 514),
    "reasoning/coding": (465, 584),
    "safety/bias": (506, 508),
    "vqa": (1036, 1198),
  }
  found = pairwise.multimodal_metric(*made(counts))
  row = published.PUBLISHED["multimodal_rewardbench"][1]["R1-Reward"]
  assert {k: round(100 * v, 1) for k, v in found.items()} == row


def test_mm_rlhf_row():
  counts = {
    "mcq": (34, 42),
    "long": (33, 37),
    "short": (28, 34),
    "safety": (24, 32),
    "video": (18, 25),
  }
  items, verdicts = made(counts)
  # 46 prompts: 25 with all their pairs right, the wrong pairs in 21 others.
  wrong, right = iter(range(25, 46)), iter(range(25))
  groups = []
  for verdict in verdicts:
    first, other = (right, 0) if verdict.score else (wrong, 45)
    groups.append(str(next(first, other)))
  items = [i._replace(group=g) for i, g in zip(items, groups)]
  found = percent(pairwise.mm_rlhf_metric(items, verdicts))
  row = published.PUBLISHED["mm_rlhf_rewardbench"][1]["R1-Reward"]
  assert found == pytest.approx(row, abs=0.011)


def test_rewardbench_weighs_subsets_and_means_sections():
  items, verdicts = made(
    {
      "alpacaeval-easy": (1, 2),
      "mt-bench-med": (1, 1),
      "math-prm": (0, 1),
      "hep-cpp": (1, 1),
    }
  )
  found = pairwise.rewardbench_metric(items, verdicts)
  chat = (0.5 * 100 + 1 * 40) / 140
  reasoning = 164 / (164 + 984)
  assert found["Chat"] == pytest.approx(chat)
  assert found["Reasoning"] == pytest.approx(reasoning)
  assert found["overall"] == pytest.approx((chat + reasoning) / 2)


# --------------------------------------------------------------- judging
@pytest.mark.parametrize(
  "text, pick",
  [
    ("<think>2?</think><answer>1</answer>", "1"),
    ("<answer> 2 </answer>", "2"),
    ("<answer>Response 1</answer>", "1"),
    ("<answer>1.0</answer>", "1"),
    ("<answer>3</answer>", None),
    ("<answer>1 or 2</answer>", None),
    ("<answer></answer>", None),
    ("<answer>one", None),
    ("</think>the better one is 2", "2"),
    ("1 is good and 2 is bad, I think", None),
    ("", None),
    ("neither", None),
  ],
)
def test_grade(text, pick):
  assert pairwise.grade(text, PAIR) == Verdict(float(pick == "1"), pick)
  other = PAIR._replace(answer="2")
  assert pairwise.grade(text, other) == Verdict(float(pick == "2"), pick)


def test_the_prompt_holds_question_and_responses_in_their_order():
  text = pairwise.prompt(PAIR._replace(question="why {x}?"))
  places = [text.index(part) for part in ("why {x}?", "good", "bad")]
  assert places == sorted(places)
  assert "  \n###### [Question]:\nwhy" in text


def test_scalar_models_have_to_prefer_strictly():
  items = [PAIR, PAIR, PAIR._replace(answer="2"), PAIR]
  scores = np.array([[2, 1], [1, 1], [0, 3], [0, 3.0]])
  found = pairwise.prefer(items, scores)
  assert [(v.score, v.pick) for v in found] == [
    (1, "1"),
    (0, None),
    (1, "2"),
    (0, "2"),
  ]


def test_orders_see_a_judge_that_always_says_1():
  items = pairwise.both_orders([PAIR, PAIR._replace(answer="2")])
  assert [i.answer for i in items] == ["1", "2", "2", "1"]
  assert items[2].responses == ("bad", "good")
  always = [pairwise.grade("<answer>1</answer>", i) for i in items]
  assert np.mean([v.score for v in always]) == 0.5
  assert pairwise.orders(items, always) == {
    "first": 1,
    "agreement": 0,
    "consistent": 0,
  }
  good = [
    pairwise.grade(f"<answer>{1 + i.responses.index('good')}</answer>", i)
    for i in items
  ]
  assert pairwise.orders(items, good) == {
    "first": 0.5,
    "agreement": 1,
    "consistent": 0.5,
  }
  with pytest.raises(InputError, match="both_orders"):
    pairwise.orders(items[:3], always[:3])


# --------------------------------------------------------------- layouts
@pytest.fixture
def picture(tmp_path):
  path = tmp_path / "a.png"
  Image.new("RGB", (3, 2)).save(path)
  return path


def write_lines(path, records):
  path.write_text("".join(json.dumps(r) + "\n" for r in records))


def test_read_vl(tmp_path, picture):
  records = [
    {
      "id": f"RLAIF-V-{i}",
      "query": "q",
      "response": ["good", "bad"] if i % 2 else ["bad", "good"],
      "human_ranking": [0, 1] if i % 2 else [1, 0],
      "image": "a.png",
    }
    for i in range(64)
  ]
  write_lines(tmp_path / "test.jsonl", records)
  items = pairwise.read_vl(tmp_path)
  for item in items:
    assert item.responses[int(item.answer) - 1] == "good"
    assert item.pictures == (picture,)
  # The order is drawn, not the published one: each is met often enough.
  assert 16 < sum(i.answer == "1" for i in items) < 48
  assert items == pairwise.read_vl(tmp_path)


def test_read_multimodal(tmp_path, picture):
  record = {"Text": "q", "Image": "a.png", "Output1": "x", "Output2": "y"}
  rows = [
    {"ID": "Math_3", "Category": "reasoning", "Better": "Output2"},
    {"ID": "livecode_1", "Category": "reasoning", "Better": "Output1"},
    {"ID": "PAIRS_1", "Category": "safety", "Better": "Output1"},
    {"ID": "hateful_1", "Category": "safety", "Better": "Output1"},
    {"ID": "v1", "Category": "vqa", "Better": "Output1"},
  ]
  path = tmp_path / "all_data.json"
  path.write_text(json.dumps([record | row for row in rows]))
  items = pairwise.read_multimodal(tmp_path)
  assert [i.answer for i in items] == ["2", "1", "1", "1", "1"]
  assert items[0].responses == ("x", "y")
  assert [i.category for i in items] == [
    "reasoning/math",
    "reasoning/coding",
    "safety/bias",
    "safety/toxicity",
    "vqa",
  ]
  path.write_text(json.dumps([record | rows[0] | {"Better": "A"}]))
  with pytest.raises(InputError, match="'Better' is 'A'"):
    pairwise.read_multimodal(tmp_path)


def test_read_mm_rlhf(tmp_path):
  (tmp_path / "long").mkdir()
  Image.new("RGB", (3, 2)).save(tmp_path / "long" / "a.png")
  frames = tmp_path / "video" / "v"
  frames.mkdir(parents=True)
  for i in (3, 1, 2):
    Image.new("RGB", (1, 1), (i, 0, 0)).save(frames / f"{i:04}.png")
  texts = {"prompt": "q", "chosen": "good", "rejected": "bad"}
  rows = [{"id": 7, "image": "long/a.png"}, {"id": 8, "video": "video/v"}]
  write_lines(tmp_path / "mm_reward_bench.jsonl", [row | texts for row in rows])
  long, video = pairwise.read_mm_rlhf(tmp_path)
  assert (long.category, video.category) == ("long", "video")
  assert (long.group, video.group) == ("7", "8")
  assert long.responses[int(long.answer) - 1] == "good"
  (taken,) = video.pictures
  assert len(taken) == 32
  assert list(dict.fromkeys(f.name for f in taken)) == [
    "0001.png",
    "0002.png",
    "0003.png",
  ]
  with pytest.raises(InputError, match="frame folder"):
    pairwise.frames(tmp_path / "none", where="x:1")


def test_read_rewardbench_leaves_the_prior_sets_out(tmp_path):
  texts = {"prompt": "q", "chosen": "good", "rejected": "bad"}
  rows = [{"id": 1, "subset": "math-prm"}, {"id": 2, "subset": "shp"}]
  write_lines(tmp_path / "filtered.jsonl", [row | texts for row in rows])
  (item,) = pairwise.read_rewardbench(tmp_path)
  assert item.category == "math-prm"
