"""Prompts to rewarded trajectories: the seam between device and host.

Tokens come to the host once a step, strings are graded there, and two
numbers a row go back.
"""

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
  """
  start = time.perf_counter()
  prompts = sharding.to_device(batch.arrays, mesh)
  completions = sample(params, prompts, key)
  tokens = sharding.to_host(completions.tokens)
  sampled = time.perf_counter()
  scores = grade(terms, tokenizer, tokens, batch)
  rewards = sharding.to_device(
    (scores.total, scores.verifiable, scores.terms), mesh
  )
  trajectories = assemble(prompts, completions, *rewards)
  graded = time.perf_counter()
  return Rollout(trajectories, scores, sampled - start, graded - sampled)


def grade(
  terms: Mapping[str, Term],
  tokenizer: Tokenizer,
  tokens: Int[np.ndarray, "B T"],
  batch: Batch,
) -> compose.Scores:
  """Scores of B completions, as many for each example of the batch."""
  samples = len(tokens) // len(batch.examples)
  examples = [e for e in batch.examples for _ in range(samples)]
  answers = [e.answer for e in examples]
  facts = [e.facts for e in examples]
  return compose.score(terms, tok.decode(tokenizer, tokens), answers, facts)


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
