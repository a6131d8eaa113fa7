"""Prompts to rewarded trajectories: the seam between device and host.

Tokens come to the host once a step, strings are graded there, and two
numbers a row go back.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxrl_mm import sharding
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.loader import Batch
from jaxrl_mm.data.tokenizer import Tokenizer
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.rewards import compose
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.structs import Completions, Prompts, Trajectories

Sample = Callable[[Params, Prompts, PRNGKeyArray], Completions]


class Rollout(NamedTuple):
  """What one step of sampling and grading gave.

  Attributes:
    trajectories: on the device, B rows, samples of a prompt side by side.
    scores: numpy, the rows of this process.
    sample_seconds, reward_seconds: wall time of the two halves.
  """

  trajectories: Trajectories
  scores: compose.Scores
  sample_seconds: float
  reward_seconds: float


def rollout(
  sample: Sample,
  params: Params,
  batch: Batch,
  key: PRNGKeyArray,
  terms: Mapping[str, Term],
  tokenizer: Tokenizer,
  mesh: Mesh,
  prefix: str = "",
) -> Rollout:
  """Draws completions for a batch of prompts and grades them.

  Args:
    sample: jitted, `(params, prompts, key) -> completions` of P * G rows.
    params: of the policy.
    batch: prompts of this process with their examples.
    key: of the draws.
    terms: the reward.
    tokenizer: to read the completions.
    mesh: on which the rows live.
    prefix: see `grade`.
  """
  start = time.perf_counter()
  prompts = sharding.to_device(batch.arrays, mesh)
  completions = sample(params, prompts, key)
  tokens = sharding.to_host(completions.tokens)
  sampled = time.perf_counter()
  scores = _grade_once(
    terms, tokenizer, tokens, batch, prefix, mesh, len(completions.tokens)
  )
  rewards = sharding.to_device(
    (scores.total, scores.verifiable, scores.terms), mesh
  )
  trajectories = assemble(prompts, completions, *rewards)
  graded = time.perf_counter()
  return Rollout(trajectories, scores, sampled - start, graded - sampled)


def _grade_once(terms, tokenizer, tokens, batch, prefix, mesh, rows):
  """Scores of the rows of this process; `rows` are those of all.

  A row that several hold is graded by the first of them, so that a judge is
  asked once and no time limit can tell it apart.
  """
  own = sharding.first_held(mesh, rows)
  numbers = np.zeros((len(own), 2 + len(terms)), np.float32)
  failures = dict.fromkeys(terms, 0)
  if own.any():
    asked = own.reshape(len(batch.examples), -1)[:, 0]
    examples = list(itertools.compress(batch.examples, asked))
    mine = batch._replace(examples=examples)
    graded = grade(terms, tokenizer, tokens[own], mine, prefix)
    columns = graded.total, graded.verifiable, *graded.terms.values()
    numbers[own], failures = np.stack(columns, 1), graded.failures
  total, verifiable, *each = sharding.of_first_holder(numbers, mesh, rows).T
  return compose.Scores(total, verifiable, dict(zip(terms, each)), failures)


def uniform_groups(rolled: Rollout, samples: int) -> int:
  """Groups whose rules gave all rows the same, in all processes."""
  share = np.mean(_is_uniform(rolled.scores.verifiable, samples))
  groups = rolled.trajectories.group.shape[0] // samples
  return round(sharding.mean_over_processes(float(share)) * groups)


def _is_uniform(verifiable, samples):
  return np.ptp(verifiable.reshape(-1, samples), axis=1) == 0


def refill(old: Rollout, new: Rollout, samples: int, mesh: Mesh) -> Rollout:
  """Groups of `old` with equal rewards give way to groups of `new` without.

  The dynamic sampling of DAPO (https://arxiv.org/abs/2503.14476, section 3.2).
  A group moves within its batch shard, so that no picture travels; there may
  be fewer new groups than are needed.

  Args:
    old, new: of as many prompts.
    samples: G, side by side.
    mesh: on which the rows live.
  """
  shards = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
  mine = len(sharding.local_rows(mesh, shards))
  source = _sources(
    _is_uniform(old.scores.verifiable, samples),
    ~_is_uniform(new.scores.verifiable, samples),
    mine,
  )
  rows = (source[:, None] * samples + np.arange(samples)).reshape(-1)
  replaced = np.repeat(source >= 0, samples)
  where = sharding.to_device((rows.astype(np.int32), replaced), mesh)
  trajectories = _replace(old.trajectories, new.trajectories, *where)
  here = _row_numbers(rows, mine)
  choose = lambda a, b: np.where(replaced, b[here], a)
  scores = old.scores._replace(
    total=choose(old.scores.total, new.scores.total),
    verifiable=choose(old.scores.verifiable, new.scores.verifiable),
    terms=jax.tree.map(choose, old.scores.terms, new.scores.terms),
    failures={
      name: count + new.scores.failures[name]
      for name, count in old.scores.failures.items()
    },
  )
  return Rollout(
    trajectories,
    scores,
    old.sample_seconds + new.sample_seconds,
    old.reward_seconds + new.reward_seconds,
  )


def _sources(holes, useful, shards):
  """The new group, by number within its shard, for each hole; -1 for none."""
  source = np.full(holes.shape, -1)
  for part, hole, found in zip(
    source.reshape(shards, -1),
    holes.reshape(shards, -1),
    useful.reshape(shards, -1),
  ):
    pairs = zip(np.flatnonzero(hole), np.flatnonzero(found))
    for place, group in pairs:
      part[place] = group
  return source


def _row_numbers(rows, shards):
  """From numbers within a shard to numbers within the process."""
  per_shard = len(rows) // shards
  return rows + np.repeat(np.arange(shards) * per_shard, per_shard)


@jax.jit
def _replace(old: Trajectories, new: Trajectories, rows, replaced):
  def choose(old, new):
    taken = sharding.take_rows(new, rows)
    return jnp.where(jnp.expand_dims(replaced, range(1, old.ndim)), taken, old)

  return sharding.constrain_rows(jax.tree.map(choose, old, new))


def grade(
  terms: Mapping[str, Term],
  tokenizer: Tokenizer,
  tokens: Int[np.ndarray, "B T"],
  batch: Batch,
  prefix: str = "",
) -> compose.Scores:
  """Scores of B completions, as many for each example of the batch.

  `prefix` is the beginning of the answers that stands in their prompts.
  """
  samples = len(tokens) // len(batch.examples)
  examples = [e for e in batch.examples for _ in range(samples)]
  answers = [e.answer for e in examples]
  facts = [e.facts for e in examples]
  texts = [prefix + text for text in tok.decode(tokenizer, tokens)]
  return compose.score(terms, texts, answers, facts)


@jax.jit
def assemble(
  prompts: Prompts,
  completions: Completions,
  total: Float[Array, " B"],
  verifiable: Float[Array, " B"],
  terms: dict[str, Float[Array, " B"]],
) -> Trajectories:
  """Trajectories whose rows carry their prompt, so that any can be replayed."""
  rows = completions.tokens.shape[0]
  samples = rows // prompts.tokens.shape[0]
  prompts = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), prompts)
  return Trajectories(
    tokens=completions.tokens,
    mask=completions.mask,
    logp=completions.logp,
    group=prompts.group,
    rewards=total,
    verifiable=verifiable,
    advantages=jnp.zeros(rows, jnp.float32),
    prompts=sharding.constrain_rows(prompts),
    terms=terms,
  )
