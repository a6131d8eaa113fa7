"""How good a judge of two responses is, by single samples and by votes.

R1-Reward (https://arxiv.org/abs/2505.02835, section 5) reports voting@K and
any@K. Its released scripts always show the better response first, so that a
judge that says 1 is always right; here each pair is shown in both orders.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxrl_mm import preemption
from jaxrl_mm.data.sources import Source
from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import metrics, pairwise
from jaxrl_mm.evaluate.items import Item, Verdict
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.rewards import consistency
from jaxrl_mm.rewards import format as form
from jaxrl_mm.sampling.weights import to_decode
from jaxrl_mm.train.loop import Setting
from jaxrl_mm.train.sample import ask, make_sample


@dataclasses.dataclass(frozen=True)
class JudgingConfig:
  """What is measured of a judge after each stage.

  Attributes:
    source: pairs, see `data.sets.open_source`.
    pairs: how many.
    batch: comparisons made at once.
    samples: of each comparison, at temperature 1.
    votes: K of voting@K and any@K.
  """

  source: str = "digit-pairs/test"
  pairs: int = 256
  batch: int = 128
  samples: int = 15
  votes: tuple[int, ...] = (1, 5, 15)


def make_judging(
  setting: Setting, config: JudgingConfig, source: Source
) -> Callable[[Params], dict[str, float]]:
  """A function from a judge's weights to what `summarize` says of it.

  The same comparisons and draws each time.

  Args:
    setting: shared by all stages.
    config: how much is measured.
    source: all pairs, then all pairs in the other order.

  Raises:
    InputError: there are too few pairs, or votes of more samples than drawn.
    Preempted: by the function, where the end of a run is near.
  """
  if len(source) != 2 * config.pairs:
    raise InputError(
      f"config.judging.pairs is {config.pairs} and {config.source} has "
      f"{len(source) // 2} pairs"
    )
  if max(config.votes) > config.samples:
    raise InputError(
      f"config.judging.votes has {max(config.votes)} and config.judging."
      f"samples is {config.samples}; it cannot be less"
    )
  draw = make_sample(
    setting, samples_per_prompt=config.samples, temperature=1.0
  )
  examples = [source[i] for i in range(len(source))]
  items = [_item(example) for example in examples]

  def judge(params: Params) -> dict[str, float]:
    weights = to_decode(setting.model, params)
    texts, lengths = [], []
    for start in range(0, len(examples), config.batch):
      preemption.check("held-out pairs were not all judged")
      part = examples[start : start + config.batch]
      key = jax.random.fold_in(jax.random.key(0), start)
      said, long = ask(setting, draw, weights, part, key, batch=config.batch)
      texts, lengths = texts + said, lengths + long
    rows = [
      texts[i : i + config.samples]
      for i in range(0, len(texts), config.samples)
    ]
    found = summarize(items, rows, config.votes)
    return found | {"length": float(np.mean(lengths))}

  return judge


def _item(example) -> Item:
  return Item(
    id=example.name,
    question=example.question,
    answer=example.answer,
    responses=("", ""),
  )


def summarize(
  items: Sequence[Item],
  texts: Sequence[Sequence[str]],
  votes: Sequence[int],
) -> dict[str, float]:
  """The numbers of a judge; shares.

  Args:
    items: what `pairwise.both_orders` gave.
    texts: n samples for each.
    votes: sizes K <= n.

  Returns:
    "accuracy" of single samples; "voting@K", of the votes of K samples, meaned
    over the n // K disjoint parts of the samples; "any@K", the chance that one
    of K is right; "first", "agreement" and "consistent" of `pairwise.orders`,
    meaned over the samples; "format" and "reasoned", the share whose analysis
    leads to its choice.
  """
  verdicts = [
    [pairwise.grade(text, item) for text in row]
    for item, row in zip(items, texts)
  ]
  scores = np.array([[v.score for v in row] for row in verdicts])
  flat = [text for row in texts for text in row]
  orders = [pairwise.orders(items, column) for column in zip(*verdicts)]
  return {
    "accuracy": float(scores.mean()),
    **{f"voting@{k}": _voting(verdicts, k) for k in votes},
    **{f"any@{k}": metrics.pass_at_k(scores, k) for k in votes},
    **{n: float(np.mean([o[n] for o in orders])) for n in orders[0]},
    "format": float(form.r1(flat, flat).mean()),
    "reasoned": float(
      (consistency.verdicts(flat, consistency.by_rule) > 0).mean()
    ),
  }


def _voting(verdicts: Sequence[Sequence[Verdict]], size: int) -> float:
  parts = [
    metrics.vote(row[start : start + size])
    for row in verdicts
    for start in range(0, len(row) - size + 1, size)
  ]
  return float(np.mean([verdict.score for verdict in parts]))
