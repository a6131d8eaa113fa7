"""Every benchmark from its published layout to its metric.

`FOLDERS` holds a few made-up records of each in exactly the form of the
published files: their names, their columns, pictures as bytes or as paths.
"""

import base64
import importlib
import io
import json
import pickle
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import items as items_
from jaxrl_mm.evaluate.benchmarks import BENCHMARKS, check_folder, find
from jaxrl_mm.rewards import sandbox


def _png():
  buffer = io.BytesIO()
  Image.new("RGB", (3, 2), (9, 8, 7)).save(buffer, "PNG")
  return buffer.getvalue()


PNG = _png()
# As the hub's parquet files hold a picture.
PICTURE = {"bytes": PNG, "path": "1.png"}
NO_PICTURES = {f"image_{i}": None for i in range(2, 8)}

_MMMU = {
  "options": "['a cat', 'a dog', 'an owl']",
  "explanation": "",
  "image_1": PICTURE,
  **NO_PICTURES,
  "img_type": "['Photographs']",
  "topic_difficulty": "Easy",
}
_MATHVISTA = {
  "image": "images/1.jpg",
  "decoded_image": PICTURE,
  "choices": None,
  "unit": None,
  "precision": None,
  "question_type": "free_form",
  "query": "",
  "metadata": {"task": "geometry problem solving", "split": "testmini"},
}
_OLYMPIAD = {
  "solution": ["..."],
  "context": None,
  "image_1": PICTURE,
  "modality": "Multimodal",
  "difficulty": "Competition",
  "is_multiple_answer": False,
  "unit": None,
  "answer_type": "Numerical",
  "error": None,
  "question_type": "Open-ended",
  "subfield": "Algebra",
  "subject": "Math",
  "language": "English",
}
_AREA = {
  "name": "triangle.area",
  "description": "Area of a triangle.",
  "parameters": {
    "type": "dict",
    "properties": {
      "base": {"type": "integer", "description": "in m"},
      "height": {"type": "float", "description": "in m"},
      "unit": {"type": "string", "description": "of the result"},
    },
    "required": ["base", "height"],
  },
}
_ASKED = {"question": [[{"role": "user", "content": "Area of 10 by 5?"}]]}
_TESTS = json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"}])
_HIDDEN = base64.b64encode(zlib.compress(pickle.dumps(_TESTS))).decode()
_HALLUSION = {
  "category": "VD",
  "subcategory": "illusion",
  "set_id": "0",
  "sample_note": "circle",
  "gt_answer_details": "The right one is.",
}
_PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}


def _lines(rows):
  return "".join(json.dumps(row) + "\n" for row in rows)


def _vl(name, ranking):
  return {
    "id": name,
    "query": "What is shown?",
    "response": ["Good." if r == 0 else "Bad." for r in ranking],
    "image": PICTURE,
    "human_ranking": ranking,
    "models": ["a", "b"],
    "judge": "human",
    "rationale": "",
    "query_source": "x",
    "ground_truth": "",
  }


# Benchmark -> file -> its rows, or its text, or its bytes.
FOLDERS = {
  "mmmu": {
    "Math/validation-00000-of-00001.parquet": [
      _MMMU
      | {
        "id": "validation_Math_1",
        "question": "<image 1> What is it?",
        "answer": "B",
        "question_type": "multiple-choice",
        "subfield": "Algebra",
      }
    ],
    "Art/validation-00000-of-00001.parquet": [
      _MMMU
      | {
        "id": "validation_Art_1",
        "question": "How many?",
        "options": "[]",
        "answer": "['3', 'three']",
        "question_type": "open",
        "subfield": "Drawing",
      }
    ],
    # Without answers, and not to be read.
    "Math/test-00000-of-00001.parquet": [
      _MMMU | {"id": "test_Math_1", "question": "?", "answer": "?"}
    ],
  },
  "mmmu_pro": {
    "standard (10 options)/test-00000-of-00001.parquet": [
      {
        "id": "test_History_1",
        "question": "<image 1> When?",
        "options": str([f"in {year}" for year in range(1900, 1910)]),
        "explanation": "",
        "image_1": PICTURE,
        **NO_PICTURES,
        "img_type": "[]",
        "answer": "J",
        "topic_difficulty": "Hard",
        "subject": "History",
      }
    ],
    "vision/test-00000-of-00001.parquet": [
      {
        "id": "test_History_1",
        "image": PICTURE,
        "options": str([f"in {year}" for year in range(1900, 1910)]),
        "answer": "J",
        "subject": "History",
      }
    ],
    "standard (4 options)/test-00000-of-00001.parquet": [
      {"id": "x", "question": "?", "options": "[]", "answer": "A"}
    ],
  },
  "mathvista": {
    "data/testmini-00000-of-00001-725687bf7a18d64b.parquet": [
      _MATHVISTA
      | {
        "pid": "1",
        "question": "Which?",
        "choices": ["145°", "35°"],
        "question_type": "multi_choice",
        "answer": "145°",
        "answer_type": "text",
      },
      _MATHVISTA
      | {
        "pid": "2",
        "question": "How long?",
        "unit": "cm",
        "precision": 1.0,
        "answer": "1.2",
        "answer_type": "float",
      },
    ],
    "data/test-00000-of-00002-6b81bd7f7e2065e6.parquet": [
      _MATHVISTA
      | {"pid": "3", "question": "?", "answer": "", "answer_type": "text"}
    ],
  },
  "mathvision": {
    "data/testmini-00000-of-00001-f8ff70fcb2f29b1d.parquet": [
      {
        "id": "4",
        "question": "Which?\n<image1>",
        "options": ["A", "B", "C", "D", "E"],
        "image": "images/4.jpg",
        "decoded_image": PICTURE,
        "answer": "C",
        "solution": None,
        "level": 2,
        "subject": "counting",
      },
      {
        "id": "5",
        "question": "What is $x$?\n<image1>",
        "options": [],
        "image": "images/5.jpg",
        "decoded_image": PICTURE,
        "answer": "\\frac{1}{2}",
        "solution": None,
        "level": 5,
        "subject": "algebra",
      },
    ],
    "data/test-00000-of-00001-3532b8d3f1b4047a.parquet": [
      {"id": "4", "question": "?", "options": [], "answer": "1"}
    ],
  },
  "olympiadbench": {
    "OE_MM_maths_en_COMP/OE_MM_maths_en_COMP.parquet": [
      _OLYMPIAD
      | {
        "id": 2231,
        "question": "Solve. <image_1>",
        "final_answer": ["$3$,$-3$"],
        "is_multiple_answer": True,
      }
    ],
    "OE_MM_physics_en_COMP/OE_MM_physics_en_COMP.parquet": [
      _OLYMPIAD
      | {
        "id": 7,
        "context": "A ball falls.",
        "question": "How far?",
        "final_answer": ["$9.8$"],
        "unit": "m",
        "error": "0.1",
      }
    ],
    "TP_MM_maths_en_COMP/TP_MM_maths_en_COMP.parquet": [
      _OLYMPIAD | {"id": 1, "question": "Prove.", "final_answer": None}
    ],
  },
  "aime_2024": {
    "aime_2024_problems.parquet": [
      {"ID": "2024-I-1", "Problem": "$x$?", "Solution": "", "Answer": 204},
      {"ID": "2024-I-2", "Problem": "$y$?", "Solution": "", "Answer": 25},
    ]
  },
  "gpqa": {
    "gpqa_diamond.csv": "Record ID,Question,Correct Answer,Incorrect Answer 1,"
    "Incorrect Answer 2,Incorrect Answer 3,High-level domain\n"
    'rec1,"Which,\nand why?",right,wrong 1,wrong 2,wrong 3,Physics\n'
    "rec2,Other?, right ,wrong 1,wrong 2,wrong 3,Biology\n"
  },
  "ifeval": {
    "ifeval_input_data.jsonl": _lines(
      [
        {
          "key": 1000,
          "prompt": "Write without commas.",
          "instruction_id_list": ["punctuation:no_comma"],
          "kwargs": [{}],
        },
        {
          "key": 1001,
          "prompt": "Write three words and no comma.",
          "instruction_id_list": [
            "length_constraints:number_words",
            "punctuation:no_comma",
          ],
          "kwargs": [{"relation": "at least", "num_words": 3}, {}],
        },
      ]
    )
  },
  "bfcl": {
    "BFCL_v3_simple.json": _lines(
      [{"id": "simple_0", **_ASKED, "function": [_AREA]}]
    ),
    "possible_answer/BFCL_v3_simple.json": _lines(
      [
        {
          "id": "simple_0",
          "ground_truth": [
            {
              "triangle.area": {
                "base": [10],
                "height": [5.0],
                "unit": ["m2", ""],
              }
            }
          ],
        }
      ]
    ),
    "BFCL_v3_irrelevance.json": _lines(
      [{"id": "irrelevance_0", **_ASKED, "function": [_AREA]}]
    ),
    "BFCL_v3_live_relevance.json": _lines(
      [{"id": "live_relevance_0-0-0", **_ASKED, "function": [_AREA]}]
    ),
    # Of another language, which is not read.
    "BFCL_v3_java.json": _lines([{"id": "java_0"}]),
  },
  "livebench": {
    "math/data/test-00000-of-00001.parquet": [
      {
        "question_id": "m1",
        "category": "math",
        "turns": ["What is 1+1? Repeat the letter five times."],
        "ground_truth": "B",
        "task": "math_comp",
        "subtask": "amc_2024",
        "livebench_release_date": "2024-06-24",
      }
    ],
    "data_analysis/data/test-00000-of-00001.parquet": [
      {
        "question_id": "d1",
        "category": "data_analysis",
        "turns": [
          "Please convert the Input Table from TSV format to CSV format.\n\n"
          "Input Table:\n\na\tb\n1\t2\n"
        ],
        "ground_truth": "a,b\n1,2\n",
        "task": "tablereformat",
        "livebench_release_date": "2024-06-24",
      }
    ],
    "reasoning/data/test-00000-of-00001.parquet": [
      {
        "question_id": "r1",
        "category": "reasoning",
        "turns": ["Does Ann tell the truth?"],
        "ground_truth": "yes, no, yes",
        "task": "web_of_lies_v2",
        "livebench_release_date": "2024-06-24",
      }
    ],
  },
  "livecodebench": {
    "test5.jsonl": _lines(
      [
        {
          "question_title": "A",
          "question_content": "Add one.",
          "platform": "atcoder",
          "question_id": "abc300_a",
          "contest_id": "abc300",
          "contest_date": "2024-09-01T00:00:00",
          "starter_code": "",
          "difficulty": "easy",
          "public_test_cases": _TESTS,
          "private_test_cases": _HIDDEN,
          "metadata": "{}",
        }
      ]
    )
  },
  "hallusionbench": {
    "HallusionBench.json": json.dumps(
      [
        _HALLUSION
        | {
          "visual_input": "1",
          "figure_id": "0",
          "question_id": "0",
          "question": "Is the right circle larger?",
          "gt_answer": "1",
          "filename": "./VD/illusion/0_0.png",
        },
        _HALLUSION
        | {
          "category": "VS",
          "visual_input": "0",
          "figure_id": "0",
          "question_id": "0",
          "question": "Is Paris in Spain?",
          "gt_answer": "0",
          "filename": None,
        },
      ]
    ),
    "hallusion_bench/VD/illusion/0_0.png": PNG,
  },
  "pope": {
    **{
      f"coco_pope_{split}.json": _lines(
        [
          {
            "question_id": 1,
            "image": "COCO_val2014_000000310196.jpg",
            "text": "Is there a dog in the image?",
            "label": label,
          }
        ]
      )
      for split, label in (
        ("random", "yes"),
        ("popular", "no"),
        ("adversarial", "no"),
      )
    },
    "val2014/COCO_val2014_000000310196.jpg": PNG,
  },
  "vl_rewardbench": {
    "data/test-00000-of-00001.parquet": [
      _vl("RLAIF-V-3", [0, 1]),
      _vl("mathverse_4", [1, 0]),
      _vl("wildvision-battle_5", [0, 1]),
    ]
  },
  "multimodal_rewardbench": {
    "all_data.json": json.dumps(
      [
        {
          "ID": "Math_1",
          "Text": "How many?",
          "Image": "images/1.png",
          "Output1": "Three.",
          "Output2": "Four.",
          "Better": "Output2",
          "Category": "reasoning",
        }
      ]
    ),
    "images/1.png": PNG,
  },
  "mm_rlhf_rewardbench": {
    "mm_reward_bench.jsonl": _lines(
      [
        {"id": 1, "image": "mcq/1.png", **_PAIR},
        {"id": 2, "video": "video/2", **_PAIR},
      ]
    ),
    "mcq/1.png": PNG,
    "video/2/0001.png": PNG,
    "video/2/0002.png": PNG,
  },
  "rewardbench": {
    "data/filtered-00000-of-00001.parquet": [
      _PAIR
      | {
        "chosen_model": "a",
        "rejected_model": "b",
        "subset": subset,
        "id": number,
      }
      for number, subset in enumerate(["alpacaeval-easy", "math-prm"])
    ],
    "data/raw-00000-of-00001.parquet": [
      _PAIR | {"subset": "alpacaeval-easy", "id": 0}
    ],
  },
  "digits": {},
}

BOX = r"<think>Is it {other}?</think>Answer: \boxed{{{right}}}"


def _boxed(item):
  return BOX.format(other="A", right=item.answer)


def _picked(item):
  return BOX.format(other="0", right=item.details["answers"][0])


def _calls(item):
  if item.category == "irrelevance":
    return "There is none."
  return "[triangle.area(base=10, height=5)]"


def _no_calls(item):
  if item.category == "live_relevance":
    return "There is none."
  return "[triangle.area(base=9, height=5.0, unit='m2')]"


def _named(item):
  return f"<think>2? 1?</think><answer>{item.answer}</answer>"


def _tagged(item):
  return f"<solution>{item.answer}</solution>"


# Benchmark -> (what is right, what is wrong though it can be read).
RESPONSES = {
  "mmmu": (
    lambda i: _boxed(i) if i.choices else _picked(i),
    lambda i: r"\boxed{A}" if i.choices else r"\boxed{30}",
  ),
  "mmmu_pro": (_boxed, lambda i: r"\boxed{B}"),
  "mathvista": (_boxed, lambda i: r"\boxed{1.4}"),
  "mathvision": (_boxed, lambda i: r"\boxed{B}"),
  "olympiadbench": (
    lambda i: (
      rf"\boxed{{{i.answer.replace('$', '')} \text{{ {i.details['unit']}}}}}"
    ),
    lambda i: r"\boxed{3}",
  ),
  "aime_2024": (_boxed, lambda i: r"\boxed{7}"),
  "gpqa": (
    _boxed,
    lambda i: rf"\boxed{{{'A' if i.answer != 'A' else 'B'}}}",
  ),
  "ifeval": (lambda i: "<think>a, b</think>One two three.", lambda i: "A, b."),
  "bfcl": (_calls, _no_calls),
  "livebench": (_tagged, lambda i: "<solution>no, no, C</solution>"),
  "livecodebench": (
    lambda i: "```python\nprint(int(input()) + 1)\n```",
    lambda i: "```python\nprint(int(input()))\n```",
  ),
  "hallusionbench": (
    lambda i: f"{i.answer.title()}, it is.",
    lambda i: "No." if i.answer == "yes" else "Yes.",
  ),
  "pope": (
    lambda i: i.answer,
    lambda i: "no" if i.answer == "yes" else "yes",
  ),
  "digits": (
    _named,
    lambda i: "<answer>-1</answer>",
  ),
  **dict.fromkeys(
    (
      "vl_rewardbench",
      "multimodal_rewardbench",
      "mm_rlhf_rewardbench",
      "rewardbench",
    ),
    (_named, lambda i: f"<answer>{3 - int(i.answer)}</answer>"),
  ),
}


def _sandboxed():
  try:
    sandbox.check()
  except InputError:
    return False
  return True


@pytest.fixture
def folder(tmp_path):
  """Writes the folder of a benchmark."""

  def write(name):
    for path, content in FOLDERS[name].items():
      path = tmp_path / path
      path.parent.mkdir(parents=True, exist_ok=True)
      if isinstance(content, list):
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(content), path)
      elif isinstance(content, str):
        path.write_text(content)
      else:
        path.write_bytes(content)
    return tmp_path

  return write


every = pytest.mark.parametrize("name", BENCHMARKS)


@every
def test_from_the_published_files_to_the_metric(name, folder):
  if name == "livecodebench" and not _sandboxed():
    pytest.skip("no sandbox here")
  benchmark, (right, wrong) = BENCHMARKS[name], RESPONSES[name]
  place = folder(name)
  check_folder(name, place)
  items = benchmark.read(place)[:8]
  assert items and items == benchmark.read(place)[:8]
  for item in items:
    seen = item.question if item.choices or item.responses else ""
    assert seen in benchmark.prompt(item)
    assert all(text in benchmark.prompt(item) for text in item.responses)
    for picture in item.pictures:
      assert items_.pixels(picture).shape[-1] == 3
  grade = lambda text, item: benchmark.grade(text, item)
  good = [grade(right(item), item) for item in items]
  bad = [grade(wrong(item), item) for item in items]
  assert [v.score for v in good] == [1] * len(items)
  assert [v.score for v in bad] == [0] * len(items)
  assert benchmark.metric(items, good)["overall"] == 1
  assert benchmark.metric(items, bad)["overall"] == 0
  if name != "bfcl":  # Where nothing fits, nothing is right.
    none = [grade("", item) for item in items]
    assert {(v.score, v.pick) for v in none} == {(0, None)}


@pytest.mark.parametrize("name", [n for n in BENCHMARKS if n != "digits"])
def test_another_folder_is_refused_with_what_is_missing(name, tmp_path):
  (tmp_path / "README.txt").write_text("nothing here")
  hub = BENCHMARKS[name].hub
  for place in (tmp_path, None):
    with pytest.raises(InputError, match=f"'{name}' needs .*download {hub}"):
      check_folder(name, place)


def test_names():
  with pytest.raises(InputError, match="no benchmark 'mmlu'; known are mmmu,"):
    find("mmlu")
  assert RESPONSES.keys() == FOLDERS.keys() == BENCHMARKS.keys()


# ------------------------------------------------ what each reader makes
def read(name, folder):
  return BENCHMARKS[name].read(folder(name))


def test_mmmu_reads_the_validation_split_by_discipline(folder):
  art, math = read("mmmu", folder)
  assert (art.category, math.category) == ("Art & Design", "Science")
  assert math.choices == ("a cat", "a dog", "an owl")
  assert math.pictures == (PNG,)
  assert "B. a dog" in BENCHMARKS["mmmu"].prompt(math)
  assert "$LETTER" in BENCHMARKS["mmmu"].prompt(math)
  assert "$FINAL_ANSWER" in BENCHMARKS["mmmu"].prompt(art)


def test_mmmu_pro_shows_options_once(folder):
  standard, vision = read("mmmu_pro", folder)
  assert (standard.category, vision.category) == ("standard", "vision")
  prompt = BENCHMARKS["mmmu_pro"].prompt
  assert "J. in 1909" in prompt(standard) and "1909" not in prompt(vision)
  grade = BENCHMARKS["mmmu_pro"].grade
  metric = BENCHMARKS["mmmu_pro"].metric
  verdicts = [grade("J", standard), grade("A", vision)]
  assert metric([standard, vision], verdicts) == {
    "overall": 0.5,
    "standard": 1,
    "vision": 0,
  }


def test_mathvista_tells_the_unit_and_rounds_as_asked(folder):
  choice, free = read("mathvista", folder)
  assert free.question == "How long? (Unit: cm)"
  grade = BENCHMARKS["mathvista"].grade
  assert grade(r"\boxed{1.21 cm}", free).score == 1
  assert grade(r"\boxed{1.3}", free).score == 0
  assert grade(r"\boxed{A}", choice) == grade(r"\boxed{145°}", choice)


def test_olympiadbench_takes_tolerance_unit_and_any_order(folder):
  pair, far = read("olympiadbench", folder)
  grade = BENCHMARKS["olympiadbench"].grade
  assert grade(r"\boxed{-3, 3}", pair).score == 1
  assert grade(r"\boxed{9.75 \text{ m}}", far).score == 1
  assert grade(r"\boxed{9.6 \text{ m}}", far).score == 0
  assert far.question == "A ball falls.\nHow far?"
  assert pair.category == "OE_MM_maths_en_COMP"


def test_gpqa_draws_the_order_once_and_for_all(folder):
  items = read("gpqa", folder)
  for item in items:
    assert item.choices["ABCD".index(item.answer)] == "right"
  assert items[0].question == "Which,\nand why?"


def test_ifeval_counts_prompts_and_instructions(folder):
  items = read("ifeval", folder)
  benchmark = BENCHMARKS["ifeval"]
  # The first keeps its instruction loosely: without its last line.
  texts = ["Fine.\nSo, bye.", "Yes, well done then."]
  found = benchmark.metric(items, list(map(benchmark.grade, texts, items)))
  assert found == {
    "overall": 0,
    "instruction strict": pytest.approx(1 / 3),
    "prompt loose": 0.5,
    "instruction loose": pytest.approx(2 / 3),
  }


def test_livebench_means_tasks_then_categories(folder):
  table, maths, lies = read("livebench", folder)
  benchmark = BENCHMARKS["livebench"]
  verdicts = [benchmark.grade("BBBBB", maths), benchmark.grade("", lies)]
  found = benchmark.metric([maths, lies], verdicts)
  assert (found["overall"], found["math"], found["reasoning"]) == (0.5, 1, 0)
  assert table.details["form"] == "csv"


def test_hallusionbench_counts_questions_figures_and_pairs(folder):
  seen, unseen = read("hallusionbench", folder)
  assert seen.pictures and not unseen.pictures
  benchmark = BENCHMARKS["hallusionbench"]
  verdicts = [benchmark.grade("Yes", seen), benchmark.grade("Yes", unseen)]
  found = benchmark.metric([seen, unseen], verdicts)
  assert found == {
    "overall": pytest.approx((0.5 + 1 + 0.5) / 3),
    "aAcc": 0.5,
    "fAcc": 1,
    "qAcc": 0.5,
  }


def test_pope_counts_the_yes_to_what_is_not_there(folder):
  items = read("pope", folder)
  benchmark = BENCHMARKS["pope"]
  found = benchmark.metric(items, [benchmark.grade("Yes", i) for i in items])
  assert found["overall"] == pytest.approx(1 / 3)
  assert (found["yes"], found["recall"]) == (1, 1)
  assert found["precision"] == pytest.approx(1 / 3)
  assert found["f1/random"] == 1 and found["f1/popular"] == 0


def test_rewardbench_reads_the_filtered_split(folder):
  assert len(read("rewardbench", folder)) == 2


def test_mm_rlhf_shows_32_frames(folder):
  _, video = read("mm_rlhf_rewardbench", folder)
  assert items_.pixels(video.pictures[0]).shape == (32, 2, 3, 3)


def test_digits_are_the_questions_of_the_demo():
  items = BENCHMARKS["digits"].read(None)
  assert len(items) == 1024
  assert {i.category for i in items} == {"what is", "which is", "how many"}
  picture = items_.pixels(items[0].pictures[0])
  assert picture.shape[0] == 8 and picture.dtype == np.uint8
