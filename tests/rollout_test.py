"""Rows beside their prompts, and scores beside their rows."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_mm import rollout, sharding
from jaxrl_mm.data import loader, sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.images import Tiles
from jaxrl_mm.rewards import format as form
from jaxrl_mm.rewards import math as maths
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.structs import Completions, Prompts

TERMS = {"answer": Term(maths.exact, 1.0), "format": Term(form.r1, 0.5)}


def _batch(count):
  tokenizer = tok.build(sources.digits_texts())
  layout = loader.Layout(28, 14, Tiles(max_tiles=3, image_size=8, tokens=1))
  source = sources.Digits("train", size=100, seed=0)
  rows = [
    (loader.encode_prompt(source[i], i, tokenizer, layout), source[i])
    for i in range(count)
  ]
  return tokenizer, loader.stack(rows)


def _written(tokenizer, texts):
  ids = [tok.completion_ids(tokenizer, text) for text in texts]
  tokens = np.full((len(ids), 16), tokenizer.pad_token_id, np.int32)
  for row, one in zip(tokens, ids):
    row[: len(one)] = one
  return tokens


def test_each_sample_is_graded_by_its_own_prompt():
  tokenizer, batch = _batch(2)
  right = [e.demonstration for e in batch.examples]
  bare = f"<answer>{batch.examples[1].answer}</answer>"
  tokens = _written(tokenizer, [right[0], "<think>", right[1], bare])
  scores = rollout.grade(TERMS, tokenizer, tokens, batch)
  np.testing.assert_array_equal(scores.terms["answer"], [1, 0, 1, 1])
  np.testing.assert_array_equal(scores.terms["format"], [1, 0, 1, 0])
  np.testing.assert_array_equal(scores.total, [1.5, 0, 1.5, 1])


def test_assemble_repeats_the_prompt_for_each_sample():
  prompts = Prompts(
    tokens=jnp.arange(6).reshape(2, 3),
    mask=jnp.ones((2, 3), bool),
    images=jnp.arange(2 * 12, dtype=jnp.uint8).reshape(2, 1, 2, 2, 3),
    group=jnp.array([5, 9]),
  )
  drawn = Completions(
    jnp.zeros((6, 4), int), jnp.ones((6, 4), bool), jnp.zeros((6, 4))
  )
  reward = jnp.arange(6.0)
  rows = rollout.assemble(prompts, drawn, reward, reward, {"answer": reward})
  np.testing.assert_array_equal(rows.group, [5, 5, 5, 9, 9, 9])
  np.testing.assert_array_equal(rows.prompts.tokens[2], [0, 1, 2])
  np.testing.assert_array_equal(rows.prompts.images[3], prompts.images[1])
  assert all(x.shape[0] == 6 for x in jax.tree.leaves(rows))


def test_a_rollout_lies_on_the_mesh():
  tokenizer, batch = _batch(8)
  mesh = sharding.make_mesh()
  answers = _written(
    tokenizer, [e.demonstration for e in batch.examples for _ in range(2)]
  )

  def sample(params, prompts, key):
    del params, prompts, key
    shape = answers.shape
    return Completions(
      jnp.asarray(answers), jnp.ones(shape, bool), jnp.zeros(shape)
    )

  with jax.set_mesh(mesh):
    rolled = rollout.rollout(
      sample, {}, batch, jax.random.key(0), TERMS, tokenizer, mesh
    )
  assert rolled.trajectories.rewards.sharding.is_equivalent_to(
    sharding.rows(mesh), 1
  )
  np.testing.assert_allclose(rolled.trajectories.rewards, np.full(16, 1.5))
  np.testing.assert_allclose(rolled.scores.verifiable, np.full(16, 1.5))
