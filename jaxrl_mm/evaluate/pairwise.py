"""Benchmarks for judges of two responses, and for scalar reward models.

VL-RewardBench, Multimodal RewardBench, MM-RLHF-RewardBench, RewardBench. Both
kinds of models meet the same items: a judge answers `prompt`, a scalar model
scores `item.responses`, and `prefer` makes verdicts of its scores.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxrl_mm.data import comparisons
from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import metrics, records
from jaxrl_mm.evaluate.items import Benchmark, Item, Verdict
from jaxrl_mm.rewards import choice

VIDEO_FRAMES = 32


def prompt(item: Item) -> str:
  """The comparison that R1-Reward is asked for."""
  first, second = item.responses
  return comparisons.R1_REWARD.format(
    question=item.question, first=first, second=second
  )


def grade(response: str, item: Item) -> Verdict:
  """1 where the better response is named.

  A text without `<answer>` tags counts by the number that ends it. The
  released scripts take any last 1 or 2 in the text, and 2 for a number that is
  neither; here such a text picks nothing.
  """
  number = choice.response_of(response, untagged=True)
  if number not in (1, 2):
    return Verdict(0.0, None)
  return Verdict(float(str(number) == item.answer), str(number))


def prefer(
  items: Sequence[Item], scores: Float[np.ndarray, "N 2"]
) -> list[Verdict]:
  """Verdicts of a scalar reward model from its scores of both responses.

  The better response has to score strictly higher; a tie picks neither.
  """
  better = [int(np.sign(b - a)) for a, b in scores]
  picks = [{-1: "1", 1: "2", 0: None}[sign] for sign in better]
  return [Verdict(float(p == i.answer), p) for p, i in zip(picks, items)]


def both_orders(items: Sequence[Item]) -> list[Item]:
  """Each pair as it is, then each pair with its responses swapped."""
  return [*items, *map(_swap, items)]


def orders(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """What the order of the responses does to a judge.

  Args:
    items: what `both_orders` gave.
    verdicts: one each.

  Returns:
    "first": share of picks that are response 1, of the pairs with a pick;
    half of them is no bias, as every pair is seen in both orders.
    "agreement": share of pairs where both orders prefer the same text.
    "consistent": share of pairs that are right in both orders.
  """
  half = len(items) // 2
  if [i.answer for i in map(_swap, items[:half])] != [
    i.answer for i in items[half:]
  ]:
    raise InputError("`orders` needs the items that `both_orders` gave")
  picks = [v.pick for v in verdicts if v.pick is not None]
  pairs = list(zip(verdicts[:half], verdicts[half:]))
  return {
    "first": picks.count("1") / max(len(picks), 1),
    "agreement": float(np.mean([_agree(a, b) for a, b in pairs])),
    "consistent": float(np.mean([a.score == b.score == 1 for a, b in pairs])),
  }


def _agree(one: Verdict, other: Verdict) -> bool:
  """Both named a response, and not the same number."""
  return {one.pick, other.pick} == {"1", "2"}


def _swap(item: Item) -> Item:
  first, second = item.responses
  other = {"1": "2", "2": "1"}[item.answer]
  return item._replace(responses=(second, first), answer=other)


def with_orders(benchmark: Benchmark) -> Benchmark:
  """The same benchmark for the items that `both_orders` gives.

  Its metrics are over all items, and "orders/..." what the order does. Pairs
  of one prompt are right together within an order.
  """

  def metric(items, verdicts):
    found = orders(items, verdicts)
    found = {f"orders/{name}": value for name, value in found.items()}
    half = len(items) // 2
    apart = [f"{item.group}/{i // half}" for i, item in enumerate(items)]
    items = [item._replace(group=g) for item, g in zip(items, apart)]
    return {**benchmark.metric(items, verdicts), **found}

  return benchmark._replace(metric=metric)


def _ordered(item: Item) -> Item:
  """The pair in an order drawn by its texts: always the same, for all models.

  Where the better response always came first, a judge that always says 1
  would be always right, as under R1-Reward's released scripts.
  """
  seed = "\0".join((item.id, item.question, *sorted(item.responses)))
  swap = hashlib.sha256(seed.encode()).digest()[0] % 2
  return _swap(item) if swap else item


# -------------------------------------------------------- VL-RewardBench
def read_vl(folder: Path) -> list[Item]:
  """VL-RewardBench as published: parquet with `response` and `human_ranking`.

  A ranking of [0, 1] prefers the first response. Ids repeat.
  """
  return [_vl_item(folder, record) for record in records.read(folder)]


def _vl_item(folder: Path, record: records.Record) -> Item:
  first, second = records.get(record, "response", list)
  ranking = [int(rank) for rank in records.get(record, "human_ranking", list)]
  name = records.get(record, "id", str)
  return _ordered(
    Item(
      id=name,
      question=records.get(record, "query", str),
      answer="1" if ranking == [0, 1] else "2",
      pictures=records.pictures(folder, record, ["image"]),
      responses=(str(first), str(second)),
      category=vl_category(name),
    )
  )


def vl_category(name: str) -> str:
  """The group of an id, as in https://arxiv.org/abs/2411.17451.

  Case does not matter. R1-Reward's released script looks for "rlhf" and
  "rlaif" in ids that have them in capitals, so it counts 301 hallucination
  pairs as general ones: its General, Hallucination and Macro differ, its
  Overall and Reasoning do not.
  """
  name = name.lower()
  if "mathverse" in name or "mmmu" in name:
    return "reasoning"
  if any(word in name for word in ("hallucination", "rlhf", "rlaif")):
    return "hallucination"
  return "general"


def vl_metric(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """Share over all pairs, mean of the three groups, and each group.

  Pairs without a pick count as wrong; the official script leaves them out.
  """
  scores = [v.score for v in verdicts]
  groups = metrics.by_category([i.category for i in items], scores)
  macro = float(np.mean(list(groups.values())))
  return {"overall": float(np.mean(scores)), "macro": macro, **groups}


# ------------------------------------------------ Multimodal RewardBench
def read_multimodal(folder: Path) -> list[Item]:
  """Multimodal RewardBench: `all_data.json` as its download script writes it.

  The 500 pairs of Hateful Memes are withheld, so there are 4,711.
  """
  path = folder / "all_data.json"
  return [_multimodal_item(folder, r) for r in records.read_file(path)]


def _multimodal_item(folder: Path, record: records.Record) -> Item:
  better = records.get(record, "Better", str)
  if better not in ("Output1", "Output2"):
    raise InputError(
      f"{record.where}: 'Better' is '{better}' and has to be Output1 or Output2"
    )
  name = records.get(record, "ID", str)
  return Item(
    id=name,
    question=records.get(record, "Text", str),
    # The benchmark's own order is mixed already.
    answer=better.removeprefix("Output"),
    pictures=records.pictures(folder, record, ["Image"]),
    responses=(
      records.get(record, "Output1", str),
      records.get(record, "Output2", str),
    ),
    category=_multimodal_category(name, records.get(record, "Category", str)),
  )


def _multimodal_category(name: str, category: str) -> str:
  """Splits reasoning and safety by the id, as the official script."""
  name = name.lower()
  if category == "reasoning":
    return "reasoning/math" if name.startswith("math") else "reasoning/coding"
  if category == "safety":
    return "safety/bias" if name.startswith("pairs") else "safety/toxicity"
  # Older files write "open_generation/correctness_task".
  words = ("correctness", "preference", "knowledge", "vqa")
  return next((word for word in words if word in category), category)


def multimodal_metric(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """Share over all pairs, then of each category.

  R1-Reward's "Safety" is "safety/bias" alone, for the rest is withheld. A
  response without a pick is wrong; the official script throws a coin.
  """
  scores = [v.score for v in verdicts]
  groups = metrics.by_category([i.category for i in items], scores)
  return {"overall": float(np.mean(scores)), **groups}


# -------------------------------------------------- MM-RLHF-RewardBench
def read_mm_rlhf(folder: Path) -> list[Item]:
  """MM-RLHF-RewardBench: `mm_reward_bench.jsonl`, pictures, frame folders."""
  path = folder / "mm_reward_bench.jsonl"
  return [_mm_rlhf_item(folder, r) for r in records.read_file(path)]


def _mm_rlhf_item(folder: Path, record: records.Record) -> Item:
  name = str(record.values.get("id"))
  video = record.values.get("video")
  path = video or records.get(record, "image", str)
  item = Item(
    id=name,
    question=records.get(record, "prompt", str),
    answer="1",
    pictures=(
      (frames(folder / video, where=record.where),)
      if video
      else records.pictures(folder, record, ["image"])
    ),
    responses=(
      records.get(record, "chosen", str),
      records.get(record, "rejected", str),
    ),
    category=_mm_rlhf_category(str(path), video=bool(video)),
    group=name,
  )
  return _ordered(item)


def _mm_rlhf_category(path: str, *, video: bool) -> str:
  words = ("video",) if video else ("mcq", "long", "short", "safety")
  found = (word for word in words if video or word in path.lower())
  return next(found, "other")


def frames(
  folder: Path, *, where: str, count: int = VIDEO_FRAMES
) -> tuple[Path, ...]:
  """`count` frames of a video at even distances, in the order of their names.

  The released script takes them in the order the file system lists them.
  """
  files = sorted(folder.iterdir()) if folder.is_dir() else []
  if not files:
    raise InputError(
      f"{where}: the frame folder {folder} is not there or empty; download it"
    )
  chosen = np.linspace(0, len(files) - 1, count, dtype=int)
  return tuple(files[i] for i in chosen)


def mm_rlhf_metric(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """Acc over pairs, Acc+ over prompts with all pairs right, each category."""
  scores = [v.score for v in verdicts]
  groups = metrics.by_category([i.category for i in items], scores)
  plus = metrics.all_right([i.group for i in items], scores)
  return {"overall": float(np.mean(scores)), "acc+": plus, **groups}


# ----------------------------------------------------------- RewardBench
# Pairs of each subset. math-prm counts as many as the six of code together
# (https://arxiv.org/abs/2403.13787, section 4).
_SECTIONS = {
  "Chat": {
    "alpacaeval-easy": 100,
    "alpacaeval-length": 95,
    "alpacaeval-hard": 95,
    "mt-bench-easy": 28,
    "mt-bench-med": 40,
  },
  "Chat_Hard": {
    "mt-bench-hard": 37,
    "llmbar-natural": 100,
    "llmbar-adver-neighbor": 134,
    "llmbar-adver-GPTInst": 92,
    "llmbar-adver-GPTOut": 47,
    "llmbar-adver-manual": 46,
  },
  "Safety": {
    "refusals-dangerous": 100,
    "refusals-offensive": 100,
    "xstest-should-refuse": 154,
    "xstest-should-respond": 250,
    "donotanswer": 136,
  },
  "Reasoning": {
    "math-prm": 984,
    **{
      f"hep-{language}": 164
      for language in "cpp go java js python rust".split()
    },
  },
}


def read_rewardbench(folder: Path) -> list[Item]:
  """RewardBench's `filtered` split: parquet with prompt, chosen, rejected."""
  known = {subset for section in _SECTIONS.values() for subset in section}
  found = records.read(folder, "filtered")
  items = [_rewardbench_item(record) for record in found]
  # Not the prior test sets, which are in none of the four sections.
  return [item for item in items if item.category in known]


def _rewardbench_item(record: records.Record) -> Item:
  return _ordered(
    Item(
      id=str(record.values.get("id")),
      question=records.get(record, "prompt", str),
      answer="1",
      responses=(
        records.get(record, "chosen", str),
        records.get(record, "rejected", str),
      ),
      category=records.get(record, "subset", str),
    )
  )


def rewardbench_metric(
  items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, float]:
  """The mean of the four sections, and each: the mean of its subsets,
  weighted by their published sizes."""
  scores = [v.score for v in verdicts]
  subsets = metrics.by_category([i.category for i in items], scores)
  sections = {}
  for name, sizes in _SECTIONS.items():
    present = {s: n for s, n in sizes.items() if s in subsets}
    if present:
      total = sum(subsets[s] * n for s, n in present.items())
      sections[name] = total / sum(present.values())
  return {"overall": float(np.mean(list(sections.values()))), **sections}


VL_REWARDBENCH = Benchmark(
  read_vl,
  prompt,
  grade,
  vl_metric,
  "https://arxiv.org/abs/2411.17451",
  hub="MMInstruction/VL-RewardBench",
  files=("**/test*",),
)
MULTIMODAL_REWARDBENCH = Benchmark(
  read_multimodal,
  prompt,
  grade,
  multimodal_metric,
  "https://arxiv.org/abs/2502.14191",
  hub="github.com/facebookresearch/multimodal_rewardbench",
  files=("all_data.json",),
)
MM_RLHF_REWARDBENCH = Benchmark(
  read_mm_rlhf,
  prompt,
  grade,
  mm_rlhf_metric,
  "https://arxiv.org/abs/2502.10391",
  hub="yifanzhang114/MM-RLHF-RewardBench",
  files=("mm_reward_bench.jsonl",),
)
REWARDBENCH = Benchmark(
  read_rewardbench,
  prompt,
  grade,
  rewardbench_metric,
  "https://arxiv.org/abs/2403.13787",
  hub="allenai/reward-bench",
  files=("**/filtered*",),
)
