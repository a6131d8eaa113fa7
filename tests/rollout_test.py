"""Rows beside their prompts, and scores beside their rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import rollout, sharding
from jaxrl_mm.data import loader, sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.images import Tiles
from jaxrl_mm.rewards import compose
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


def _rolled(mesh, verifiable, offset):
  """Rollouts of four groups of two; `offset` makes every row its own."""
  rewards = np.array(verifiable, np.float32)
  numbers = np.arange(8) + offset
  words = np.tile(numbers[:, None], (1, 3)).astype(np.int32)
  prompts = Prompts(words, words > 0, None, numbers)
  drawn = Completions(words, words > 0, words.astype(np.float32))
  prompts, drawn, reward = sharding.to_device((prompts, drawn, rewards), mesh)
  scores = compose.Scores(
    rewards + offset, rewards, {"answer": rewards}, {"answer": offset}
  )
  rows = rollout.assemble(prompts, drawn, reward, reward, {"answer": reward})
  return rollout.Rollout(rows, scores, 1.0, 2.0)


@pytest.mark.parametrize(
  "shards, expected",
  [
    # Holes are groups 0, 2, 3; 1 and 3 of the new groups are good.
    (1, [12, 13, 2, 3, 16, 17, 6, 7]),
    # Each half has one to give, and the second half two holes.
    (2, [12, 13, 2, 3, 16, 17, 6, 7]),
    # Each shard is a group: 1 has no hole, 3 changes places with 3.
    (4, [0, 1, 2, 3, 4, 5, 16, 17]),
  ],
)
def test_uniform_groups_give_way_to_others(shards, expected):
  mesh = sharding.make_mesh(shards, devices=jax.devices()[:shards])
  old = _rolled(mesh, [1, 1, 0, 1, 0, 0, 1, 1], 0)
  new = _rolled(mesh, [1, 1, 1, 0, 0, 0, 0, 1], 10)
  assert rollout.uniform_groups(old, 2) == 3
  with jax.set_mesh(mesh):
    got = rollout.refill(old, new, 2, mesh)
  np.testing.assert_array_equal(got.trajectories.group, expected)
  for column in (got.trajectories.tokens, got.trajectories.prompts.tokens):
    np.testing.assert_array_equal(column[:, 0], expected)
  taken = np.array(expected) >= 10
  every = np.concatenate([old.scores.total, np.zeros(2), new.scores.total])
  np.testing.assert_array_equal(got.scores.total, every[expected])
  np.testing.assert_array_equal(got.scores.verifiable, got.trajectories.rewards)
  assert rollout.uniform_groups(got, 2) == 3 - taken.sum() // 2
  assert got.scores.failures == {"answer": 10}
  assert (got.sample_seconds, got.reward_seconds) == (2.0, 4.0)


def test_the_given_beginning_of_an_answer_is_graded_with_it():
  tokenizer, batch = _batch(1)
  whole = batch.examples[0].demonstration
  tokens = _written(tokenizer, [whole.removeprefix("<think>"), whole])
  scores = rollout.grade(TERMS, tokenizer, tokens, batch, "<think>")
  np.testing.assert_array_equal(scores.terms["format"], [1, 0])


@pytest.mark.parametrize("held_before", [0, 4, 8])
def test_of_several_that_hold_a_row_the_first_grades_it(
  monkeypatch, held_before
):
  """As a process that shares some questions with an earlier one, which found
  all of them wrong."""
  tokenizer, batch = _batch(8)
  mesh = sharding.make_mesh()
  answers = _written(
    tokenizer, [e.demonstration for e in batch.examples for _ in range(2)]
  )
  shape = answers.shape
  drawn = Completions(
    jnp.asarray(answers), jnp.ones(shape, bool), jnp.zeros(shape)
  )
  own, asked = np.arange(16) >= 2 * held_before, []

  def watch(completions, answers):
    asked.extend(answers)
    return maths.exact(completions, answers)

  def share(table, mesh, count):
    assert (count, table.dtype) == (16, np.float32)
    np.testing.assert_array_equal(table[own], np.ones((own.sum(), 3)))
    return table

  monkeypatch.setattr(sharding, "first_held", lambda mesh, count: own)
  monkeypatch.setattr(sharding, "of_first_holder", share)
  with jax.set_mesh(mesh):
    rolled = rollout.rollout(
      lambda *_: drawn,
      {},
      batch,
      jax.random.key(0),
      {"answer": Term(watch)},
      tokenizer,
      mesh,
    )
  mine = batch.examples[held_before:]
  assert asked == [e.answer for e in mine for _ in range(2)]
  t = rolled.trajectories
  for rewards in (t.rewards, t.terms["answer"], rolled.scores.verifiable):
    np.testing.assert_array_equal(rewards, own)
  assert rolled.scores.failures == {"answer": 0}
