"""Does the model say what is not in the picture? HallusionBench and POPE.

Skywork R1V2 reports a hallucination rate and does not say of what; these are
the two public probes of it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxrl_mm.evaluate import metrics, prompts, records
from jaxrl_mm.evaluate.items import Benchmark, Item, Verdict
from jaxrl_mm.evaluate.records import Record
from jaxrl_mm.rewards import yes_no


def grade(response: str, item: Item) -> Verdict:
  """1 for the right one of yes and no; saying neither, or both, is wrong."""
  pick = yes_no.pick(response)
  return Verdict(float(pick == item.answer), pick)


# -------------------------------------------------------- HallusionBench
def read_hallusion(folder: Path) -> list[Item]:
  """HallusionBench: `HallusionBench.json` beside the folder of its pictures.

  https://arxiv.org/abs/2310.14566. Questions without a picture are asked too.
  """
  path = Path(folder) / "HallusionBench.json"
  pictures = Path(folder) / "hallusion_bench"
  return [_hallusion_item(pictures, r) for r in records.read_file(path)]


def _hallusion_item(folder: Path, record: Record) -> Item:
  values = record.values
  keys = ("category", "subcategory", "set_id")
  topic = "_".join(str(values.get(key)) for key in keys)
  figure, question = values.get("figure_id"), values.get("question_id")
  seen = str(values.get("visual_input")) != "0"
  return Item(
    id=f"{topic}_{figure}_{question}",
    question=records.get(record, "question", str),
    answer="yes" if str(values.get("gt_answer")) == "1" else "no",
    pictures=records.pictures(folder, record, ["filename"]) if seen else (),
    category=records.get(record, "category", str),
    # Figure 0 of the supplements is no figure.
    group=f"{topic}_{figure}" if seen else "",
    details={"question": f"{topic}_{question}"},
  )


def hallusion_metric(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """aAcc over questions, fAcc over figures, qAcc over questions asked of
  several figures; "overall" is the mean of the three, as often reported."""
  scores = [v.score for v in verdicts]
  seen = [(i.group, s) for i, s in zip(items, scores) if i.group]
  asked = [i.details["question"] for i in items]
  found = {
    "aAcc": float(np.mean(scores)),
    "fAcc": metrics.all_right(*zip(*seen)) if seen else 0.0,
    "qAcc": metrics.all_right(asked, scores),
  }
  return {"overall": float(np.mean(list(found.values()))), **found}


# ------------------------------------------------------------------ POPE
_SPLITS = ("random", "popular", "adversarial")


def read_pope(folder: Path) -> list[Item]:
  """POPE on COCO: `coco_pope_<split>.json` and the folder `val2014`.

  https://arxiv.org/abs/2305.10355, 3,000 questions of each split.
  """
  folder = Path(folder)
  return [
    _pope_item(folder, record, split)
    for split in _SPLITS
    for record in records.read_file(folder / f"coco_pope_{split}.json")
  ]


def _pope_item(folder: Path, record: Record, split: str) -> Item:
  return Item(
    id=f"{split}_{record.values.get('question_id')}",
    question=records.get(record, "text", str),
    answer=records.get(record, "label", str),
    pictures=records.pictures(folder / "val2014", record, ["image"]),
    category=split,
  )


def pope_metric(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """Accuracy, precision, recall, F1 and share of "yes" over all, and the F1
  of each split. A "yes" to what is not there is the hallucination."""
  columns = [(i.category, i.answer, v.pick) for i, v in zip(items, verdicts)]
  pick = lambda rows: metrics.yes_no([r[1] for r in rows], [r[2] for r in rows])
  found = pick(columns)
  names = dict.fromkeys(row[0] for row in columns)
  f1 = {f"f1/{n}": pick([r for r in columns if r[0] == n])["f1"] for n in names}
  return {"overall": found.pop("accuracy"), **found, **f1}


HALLUSIONBENCH = Benchmark(
  read_hallusion,
  prompts.yes_or_no,
  grade,
  hallusion_metric,
  "https://arxiv.org/abs/2310.14566",
  hub="github.com/tianyi-lab/HallusionBench",
  files=("HallusionBench.json", "hallusion_bench"),
)
POPE = Benchmark(
  read_pope,
  prompts.yes_or_no,
  grade,
  pope_metric,
  "https://arxiv.org/abs/2305.10355",
  hub="github.com/AoiDragon/POPE",
  files=(
    "coco_pope_random.json",
    "coco_pope_popular.json",
    "coco_pope_adversarial.json",
    "val2014",
  ),
)
