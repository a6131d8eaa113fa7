"""Preference pairs from the policy's own samples.

Of the answers to one question, one that the rules find right is set against
one they find wrong. InternVL's pipeline does so by correctness; Skywork R1V2
(https://arxiv.org/abs/2504.16656, section 3.1) adds the scores of its reward
model, and keeps a pair by a threshold whose unit it does not say. Here that is
the least difference of the two scores. Pairs that a data set gives are scored
the same way, and nobody is asked.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrl_mm import sharding
from jaxrl_mm.data import loader, pairs
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.pairs import Given, Record
from jaxrl_mm.data.sources import Source
from jaxrl_mm.metrics import keep_until
from jaxrl_mm.models import vlm
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.rollout import rollout
from jaxrl_mm.sampling.weights import to_decode
from jaxrl_mm.structs import Demonstrations
from jaxrl_mm.train import journal
from jaxrl_mm.train.loop import Setting
from jaxrl_mm.train.sample import make_sample, read_prompts, write_samples
from jaxrl_mm.train.step import flatten_pairs, map_rows

Pick = Literal["widest", "closest", "first"]


@dataclasses.dataclass(frozen=True)
class CollectConfig:
  """How many questions are asked, and how often each.

  Attributes:
    prompts: questions; each gives one pair at most.
    prompts_per_step: P, asked at once.
    samples_per_prompt: G.
    temperature: of the sampler.
    micro_batch: answers a device scores at once, at most; best a multiple of
      G, so that the vision tower sees a group's picture once.
    micro_tokens: tokens a device scores at once, see `PolicyConfig`.
  """

  prompts: int = 512
  prompts_per_step: int = 32
  samples_per_prompt: int = 8
  temperature: float = 1.0
  micro_batch: int = 64
  micro_tokens: int = 0


def collect(
  setting: Setting,
  config: CollectConfig,
  params: Params,
  reward: Params | None,
  source: Source,
  terms: Mapping[str, Term],
  path: Path,
  *,
  first: int,
  step: int,
  pick: Pick = "widest",
) -> tuple[list[Record], dict[str, float]]:
  """Asks and pairs; what an earlier call has kept is read, see `journal`.

  Args:
    setting: shared by all stages.
    config: how much.
    params: the policy; its log-probs become the pairs' reference.
    reward: a reward model; without one all scores are zero.
    source: questions with answers, or pairs that are given.
    terms: rules; "answer" decides what is right, the means of the others are
      told; none for pairs that are given.
    path: of the file, a line a batch.
    first: number of the first question.
    step: of the stage; the first answers stand under it in samples.jsonl.
    pick: of several right and wrong answers, the two whose scores are
      farthest apart the right way, or those hardest to tell apart, or the
      first of each, which favours nothing.

  Returns:
    The pairs, and the mean of each term over all samples.

  Raises:
    Preempted: see `journal.keep`.
  """
  asked = dataclasses.asdict(config) | {
    "first": first,
    "pick": pick,
    "scored": reward is not None,
  }
  # More of them are further ones, and so many at once change no answer.
  del asked["prompts"], asked["micro_batch"], asked["micro_tokens"]
  take = _take if isinstance(source, Given) else _ask

  def make(start):
    shown = (path.parent, step) if start == first else None
    records, means = take(
      setting, config, params, reward, source, terms, start, pick, shown
    )
    means = {n: sharding.mean_over_processes(means[n]) for n in terms}
    return {"records": _of_all(records), "means": means}

  starts = range(first, first + config.prompts, config.prompts_per_step)
  batches = journal.keep(path, asked, starts, make)
  mean = lambda name: statistics.fmean(b["means"][name] for b in batches)
  means = {name: mean(name) for name in terms}
  fields = [record for batch in batches for record in batch["records"]]
  records = {x["index"]: pairs.parse(x) for x in fields}
  return [records[i] for i in sorted(records)], means


def _of_all(records):
  """Those of all processes; several have the pair of a row that they hold."""
  text = json.dumps([dataclasses.asdict(record) for record in records])
  every = [x for part in sharding.gather_texts(text) for x in json.loads(part)]
  first = {x["index"]: x for x in reversed(every)}
  return [first[index] for index in sorted(first)]


def _ask(setting, config, params, reward, source, terms, start, pick, shown):
  """Pairs of one batch of questions, and the means of the terms.

  The first two groups are written to the folder and step in `shown`.
  """
  batch = read_prompts(setting, source, start, config.prompts_per_step)
  samples = config.samples_per_prompt
  sample = make_sample(
    setting, samples_per_prompt=samples, temperature=config.temperature
  )
  key = jax.random.fold_in(jax.random.key(setting.seed), start)
  rolled = rollout(
    sample,
    to_decode(setting.model, params),
    batch,
    key,
    terms,
    setting.tokenizer,
    setting.mesh,
    setting.layout.prefix,
  )
  t = rolled.trajectories
  at_once = samples, config.micro_batch, config.micro_tokens
  logp = make_logp(setting, *at_once)(params, t.prompts, t.tokens, t.mask)
  scores = jnp.zeros(logp.shape)
  if reward is not None:
    score = make_score(setting, *at_once)
    scores = score(reward, t.prompts, t.tokens, t.mask)
  drawn = sharding.to_host((t.tokens, t.mask, scores, logp))
  tokens, _, scores, _ = drawn
  right = rolled.scores.terms["answer"] > 0
  ended = np.any(tokens == setting.tokenizer.eos_token_id, axis=1)
  records = []
  for number, question in enumerate(batch.arrays.group):
    rows = np.arange(number * samples, (number + 1) * samples)
    chosen = rows[right[rows] & ended[rows]]
    rejected = rows[~right[rows] & ended[rows]]
    if len(chosen) and len(rejected):
      two = _pick(scores, chosen, rejected, pick)
      records.append(_record(setting.tokenizer, int(question), two, *drawn))
  if shown:
    _write_samples(setting, *shown, rolled.trajectories, scores, 2 * samples)
  means = {n: float(x.mean()) for n, x in rolled.scores.terms.items()}
  return records, means


def _take(setting, config, params, reward, source, terms, start, pick, shown):
  """A batch of the pairs that are given; behind the last comes the first."""
  del terms, pick, shown
  held = sharding.local_rows(setting.mesh, config.prompts_per_step)
  numbers = [start + place for place in held]
  taken = [source.pair(n % len(source), setting.tokenizer) for n in numbers]
  rows = [
    (pairs.encode(pair, n, setting.tokenizer, setting.layout), pair.example)
    for n, pair in zip(numbers, taken)
  ]
  stacked = jax.tree.map(jnp.asarray, loader.stack(rows).arrays)
  flat = sharding.to_device(flatten_pairs(stacked), setting.mesh)
  at_once = 2, config.micro_batch, config.micro_tokens
  logp = make_logp(setting, *at_once)(params, *flat)
  scores = jnp.zeros(logp.shape)
  if reward is not None:
    scores = make_score(setting, *at_once)(reward, *flat)
  told = [
    np.asarray(x).reshape(-1, 2).tolist()
    for x in sharding.to_host((scores, logp))
  ]
  records = [
    dataclasses.replace(
      pair.record, scores=tuple(score), reference_logp=tuple(logp)
    )
    for pair, score, logp in zip(taken, *told)
  ]
  return records, {}


def _write_samples(setting, folder, step, trajectories, scores, count):
  """With the learned score as one more term."""
  t = sharding.to_host(trajectories)
  t = t._replace(terms=t.terms | {"score": scores})
  few = jax.tree.map(lambda x: x[:count], t)
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    keep_until(folder / "samples.jsonl", step - 1)
  write_samples(setting, folder, step, few, np.zeros(count, bool))


def _pick(
  scores: np.ndarray,
  chosen: np.ndarray,
  rejected: np.ndarray,
  pick: Pick,
) -> tuple[int, int]:
  """Rows of the two completions; see `collect`."""
  if pick == "first":
    return int(chosen[0]), int(rejected[0])
  best, worst = np.argmax, np.argmin
  if pick == "closest":
    best, worst = worst, best
  two = chosen[best(scores[chosen])], rejected[worst(scores[rejected])]
  return int(two[0]), int(two[1])


def _record(tokenizer, question, two, tokens, mask, scores, logp) -> Record:
  ids = [tokens[i][mask[i]].tolist() for i in two]
  return Record(
    index=question,
    texts=tuple(tok.decode(tokenizer, ids)),
    tokens=tuple(ids),
    scores=tuple(float(scores[i]) for i in two),
    reference_logp=tuple(float(logp[i]) for i in two),
  )


# (params, prompts, tokens, mask) -> one number a row
OfRows = Callable[..., Float[Array, " B"]]
# (params, prompts, tokens, mask) -> one number a token
OfTokens = Callable[..., Float[Array, "B T"]]


def make_logp(
  setting: Setting,
  samples_per_prompt: int,
  micro_batch: int,
  micro_tokens: int = 0,
) -> OfRows:
  """A jitted function: log-prob of each completion, in nats.

  Args:
    setting: shared by all stages.
    samples_per_prompt: how many rows usually share a picture.
    micro_batch: rows a device sees at once, at most.
    micro_tokens: tokens it sees at once, see `step.map_rows`.
  """
  at_once = samples_per_prompt, micro_batch, micro_tokens
  return _logp(setting.model, setting.image_token, *at_once)


def make_token_logp(
  setting: Setting,
  samples_per_prompt: int,
  micro_batch: int,
  micro_tokens: int,
  temperature: float,
) -> OfTokens:
  """A jitted function: log-prob of each token of the completions, in nats.

  Args:
    setting, samples_per_prompt, micro_batch, micro_tokens: as in `make_logp`.
    temperature: of the sampler that drew them.
  """

  def few(params, rows):
    return vlm.completion_logp(
      setting.model,
      params,
      *rows,
      image_token=setting.image_token,
      samples_per_prompt=samples_per_prompt,
      temperature=temperature,
      room=micro_tokens,
    )[0]

  return _by_rows(few, micro_batch, micro_tokens)


def make_score(
  setting: Setting,
  samples_per_prompt: int,
  micro_batch: int,
  micro_tokens: int = 0,
) -> OfRows:
  """A jitted function: the reward model's score of each completion.

  The arguments are those of `make_logp`.
  """
  at_once = samples_per_prompt, micro_batch, micro_tokens
  return _score(scoring(setting.model), setting.image_token, *at_once)


def scoring(model: ModelConfig) -> ModelConfig:
  """The same backbone with a value head."""
  return dataclasses.replace(model, value_head=True)


# Compiled once for all stages and rounds.
@cache
def _logp(
  model: ModelConfig,
  image_token: int,
  samples_per_prompt: int,
  micro_batch: int,
  micro_tokens: int,
):
  def few(params, rows):
    *_, mask = rows
    of_tokens, _ = vlm.completion_logp(
      model,
      params,
      *rows,
      image_token=image_token,
      samples_per_prompt=samples_per_prompt,
      room=micro_tokens,
    )
    return jnp.sum(jnp.where(mask, of_tokens, 0), axis=1)

  return _by_rows(few, micro_batch, micro_tokens)


@cache
def _score(
  model: ModelConfig,
  image_token: int,
  samples_per_prompt: int,
  micro_batch: int,
  micro_tokens: int,
):
  def few(params, rows):
    return vlm.score(
      model,
      params,
      *rows,
      image_token=image_token,
      samples_per_prompt=samples_per_prompt,
      room=micro_tokens,
    )

  return _by_rows(few, micro_batch, micro_tokens)


def _by_rows(few, micro_batch, micro_tokens):
  at_once = micro_batch, micro_tokens
  return jax.jit(
    lambda params, *rows: map_rows(
      partial(few, params), Demonstrations(*rows), *at_once
    )
  )
