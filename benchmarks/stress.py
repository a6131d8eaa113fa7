"""The stress in which R1-Reward says that Reinforce++ breaks.

Both examples of https://arxiv.org/abs/2505.02835, section 4.1, at once. Of the
256 rows of a batch one alone is wrong, which makes its advantage -15.97; and
its log-probs were recorded long ago, ten nats a token below what they are now,
which makes its ratios e^10. A policy that is right nearly always is trained on
such batches, each drawn `LAG` updates ago at most.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxrl_mm import algorithms
from jaxrl_mm.algorithms import Algorithm
from jaxrl_mm.structs import Trajectories

QUESTIONS, SAMPLES, LENGTH, VOCAB, WIDTH = 32, 8, 8, 16, 32
LAG, LEARNING_RATE, STALE = 16, 1e-2, 10.0

ALGORITHMS = {
  "Reinforce++": algorithms.reinforce_plus_plus(),
  "with Pre-CLIP alone": algorithms.stable_reinforce(threshold=1e9),
  "with the filter alone": algorithms.stable_reinforce(
    ratio_bounds=(1e-37, 1e37)
  ),
  "StableReinforce": algorithms.stable_reinforce(),
}


class Curves(NamedTuple):
  """One number an update: how often an answer is right, exactly, and the norm
  of the gradient."""

  right: Float[Array, " updates"]
  gradient_norm: Float[Array, " updates"]


def answers() -> Array:
  """[QUESTIONS, LENGTH] the right tokens."""
  return jax.random.randint(jax.random.key(0), (QUESTIONS, LENGTH), 0, VOCAB)


def log_probs(policy) -> Float[Array, "QUESTIONS LENGTH VOCAB"]:
  """Of each token of the answer; all questions share the second layer."""
  hidden = jnp.tanh(policy["question"])
  logits = jnp.einsum("qw,wtv->qtv", hidden, policy["answer"])
  return jax.nn.log_softmax(logits)


def of_tokens(policy, tokens) -> Float[Array, "B LENGTH"]:
  """Log-probs of SAMPLES answers to each question."""
  every = jnp.repeat(log_probs(policy), SAMPLES, axis=0)
  return jnp.take_along_axis(every, tokens[..., None], axis=2)[..., 0]


def log_right(policy) -> Float[Array, " QUESTIONS"]:
  """The log-prob of each whole right answer."""
  of = jnp.take_along_axis(log_probs(policy), answers()[..., None], axis=2)
  return jnp.sum(of[..., 0], axis=1)


def share_right(policy) -> Float[Array, ""]:
  """How often an answer is right, exactly."""
  return jnp.mean(jnp.exp(log_right(policy)))


def taught(key, share: float = 255 / 256):
  """A policy that is right in that share of its answers."""
  one, two = jax.random.split(key)
  policy = {
    "question": jax.random.normal(one, (QUESTIONS, WIDTH)),
    "answer": 0.1 * jax.random.normal(two, (WIDTH, LENGTH, VOCAB)),
  }
  gradient = jax.grad(lambda p: -jnp.mean(log_right(p)))
  optimizer = optax.adam(0.02)

  def better(carry):
    policy, state = carry
    moves, state = optimizer.update(gradient(policy), state)
    return optax.apply_updates(policy, moves), state

  worse = lambda carry: share_right(carry[0]) < share
  return jax.lax.while_loop(worse, better, (policy, optimizer.init(policy)))[0]


def draw(policy, key) -> Trajectories:
  """256 rows, of which one is stale, and called wrong whatever it says."""
  of_rows, of_wrong = jax.random.split(key)
  every = jnp.repeat(log_probs(policy), SAMPLES, axis=0)
  tokens = jax.random.categorical(of_rows, every)
  rows = tokens.shape[0]
  right = jnp.all(tokens == jnp.repeat(answers(), SAMPLES, axis=0), axis=1)
  wrong = jnp.arange(rows) == jax.random.randint(of_wrong, (), 0, rows)
  rewards = (right & ~wrong).astype(jnp.float32)
  return Trajectories(
    tokens,
    mask=jnp.ones(tokens.shape, bool),
    logp=of_tokens(policy, tokens) - STALE * wrong[:, None],
    group=jnp.repeat(jnp.arange(QUESTIONS), SAMPLES),
    rewards=rewards,
    verifiable=rewards,
    advantages=jnp.zeros(rows),
    prompts=None,
  )


@partial(jax.jit, static_argnums=(0, 1))
def curves(algorithm: Algorithm, updates: int, key: Array) -> Curves:
  """Trains one policy."""
  optimizer = optax.adam(LEARNING_RATE)
  start, key = jax.random.split(key)
  policy = taught(start)
  memory = algorithm.transform.init(draw(policy, key))

  def update(carry, number):
    policy, sampler, opt_state, memory = carry
    fresh = number % LAG == 0
    sampler = jax.tree.map(lambda p, s: jnp.where(fresh, p, s), policy, sampler)
    rows = draw(sampler, jax.random.fold_in(key, number))
    rows, memory = algorithm.transform.update(rows, memory)
    loss = lambda p: algorithm.loss(of_tokens(p, rows.tokens), rows)[0]
    gradient = jax.grad(loss)(policy)
    moves, opt_state = optimizer.update(gradient, opt_state)
    policy = optax.apply_updates(policy, moves)
    told = Curves(share_right(policy), optax.tree.norm(gradient))
    return (policy, sampler, opt_state, memory), told

  carry = policy, policy, optimizer.init(policy), memory
  return jax.lax.scan(update, carry, jnp.arange(updates))[1]
