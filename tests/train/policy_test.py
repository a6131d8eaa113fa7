"""The algorithm a config names, and what a step is described by."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_mm import algorithms, inputs, preemption, pytree, sharding
from jaxrl_mm.algorithms import Algorithm
from jaxrl_mm.algorithms.calibrate import hold_in_band
from jaxrl_mm.data import comparisons
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import DataConfig, Experiment
from jaxrl_mm.models import config as models
from jaxrl_mm.models import vlm
from jaxrl_mm.optimizer import (
  OptimizerConfig,
  make_optimizer,
  split_trainable,
)
from jaxrl_mm.preemption import Preempted
from jaxrl_mm.rewards.compose import Term
from jaxrl_mm.rollout import rollout
from jaxrl_mm.structs import Prompts, Trajectories
from jaxrl_mm.train import policy, sample
from jaxrl_mm.train.loop import init_state
from jaxrl_mm.train.policy import PolicyConfig
from jaxrl_mm.train.sample import make_sample, read_prompts


def _rows(rewards):
  rewards = jnp.asarray(rewards, jnp.float32)
  count = rewards.shape[0]
  mask = jnp.arange(5) < jnp.arange(1, count + 1)[:, None]
  return Trajectories(
    tokens=jnp.zeros((count, 5), jnp.int32),
    mask=mask,
    logp=jnp.zeros((count, 5)),
    group=jnp.arange(count) // 2,
    rewards=rewards,
    verifiable=rewards,
    advantages=jnp.zeros(count),
    prompts=Prompts(
      jnp.zeros((count, 3), jnp.int32),
      jnp.ones((count, 3), bool),
      None,
      jnp.arange(count) // 2,
    ),
    terms={"answer": rewards},
  )


def _transform(config, rows):
  transform = policy.make_algorithm(config, 0).transform
  return transform.update(rows, transform.init(rows))


def test_the_config_names_the_algorithm():
  config = PolicyConfig(algorithm={"name": "grpo", "clip": 0.1})
  rows, _ = _transform(config, _rows([1, 0, 1, 1]))
  assert rows.advantages[0] > 0 > rows.advantages[1]
  np.testing.assert_array_equal(rows.advantages[2:], 0)


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"name": "gpro"}, "is 'gpro'; known are cispo, dapo, .*stable_reinforce"),
    ({"name": "grpo", "capacity": 3}, "config.policy.algorithm: .*capacity"),
    ({"name": "r1v2"}, "config.policy.algorithm: .*capacity"),
  ],
)
def test_what_is_no_algorithm(settings, message):
  with pytest.raises(InputError, match=message):
    policy.make_algorithm(PolicyConfig(algorithm=settings), 0)


def test_shuffled_rewards_keep_their_sum_and_lose_their_rows():
  rewards = np.arange(64.0)
  config = PolicyConfig(algorithm={"name": "grpo"}, shuffle_rewards=True)
  rows, _ = _transform(config, _rows(rewards))
  assert sorted(rows.rewards.tolist()) == rewards.tolist()
  assert (np.asarray(rows.rewards) != rewards).mean() > 0.8


def test_description_of_a_step():
  fresh = _rows([1, 0, 1, 1])
  mixed, memory = _transform(PolicyConfig(algorithm={"name": "grpo"}), fresh)
  told = policy._describe(fresh, mixed, memory)
  assert float(told["reward"]) == float(told["answer"]) == 0.75
  assert float(told["completion_tokens"]) == (1 + 2 + 3 + 4) / 4
  assert float(told["cut_off"]) == 0
  assert float(told["tokens"]) == 1 + 2 + 3 + 4 + 4 * 3
  assert float(told["effective"]) == 0.5
  assert float(told["effective_without_buffer"]) == 0.5


def test_description_with_a_buffer():
  config = PolicyConfig(algorithm={"name": "r1v2", "capacity": 4})
  transform = policy.make_algorithm(config, 0).transform
  fresh = _rows([1, 0, 1, 1])
  state = transform.init(fresh)
  _, state = transform.update(fresh, state)
  mixed, state = transform.update(fresh, state)
  told = policy._describe(fresh, mixed, state)
  assert float(told["effective_without_buffer"]) == 0.5
  assert float(told["effective"]) == 1


# ----------------------------------------------------------------- the pool
def test_questions_that_teach_are_kept_and_the_rest_of_the_pool_is_asked_later(
  setting, monkeypatch, tmp_path
):
  source = comparisons.open_source("digit-pairs/train", size=64, seed=0)
  asked = []

  def draw(weights, batch, key):
    """Of each three questions one has answers of both kinds."""
    del weights, key
    asked.append(int(batch.arrays.group[0]))
    mixed = batch.arrays.group[:, None] % 3 == 0
    right = np.where(mixed, [0.0, 1.0], 1.0).ravel()
    return SimpleNamespace(scores=SimpleNamespace(verifiable=right))

  monkeypatch.setattr(policy, "to_decode", lambda model, params, form: {})
  config = PolicyConfig(prompts_per_step=4, samples_per_prompt=2, pool=8)
  keep = lambda config: policy.filter_prompts(
    setting, config, {}, source, draw, tmp_path
  )
  near = iter([False, True])
  monkeypatch.setattr(preemption, "is_near", lambda: next(near, False))
  with pytest.raises(Preempted, match="kept 1 of 2 batches of pool.jsonl"):
    keep(config)
  names = lambda kept: [kept[i].name for i in range(len(kept))]
  assert names(keep(config)) == [source[i].name for i in (0, 3, 6)]
  assert asked == [0, 4]
  # A larger pool asks only what is new.
  wide = dataclasses.replace(config, pool=12, steps=7)
  assert names(keep(wide)) == [source[i].name for i in (0, 3, 6, 9)]
  assert asked == [0, 4, 8]


# --------------------------------------------------- an update, all of it
PLAIN = Algorithm(
  algorithms.advantages_from_rewards(), algorithms.reinforce().loss
)


# Cut into two, so that one compilation serves all that follows.
TWICE = PolicyConfig(
  prompts_per_step=8, samples_per_prompt=1, updates_per_rollout=2
)
OPTIMIZER = make_optimizer(TWICE.optimizer, 10)


@pytest.fixture(scope="module")
def setting():
  """Of a small judge, on one device."""
  model = models.digits(vocab=80)
  small = dataclasses.replace(
    model,
    vision=dataclasses.replace(model.vision, layers=1),
    decoder=dataclasses.replace(model.decoder, layers=1),
  )
  data = DataConfig(
    prompts="digit-pairs/train", prompt_tokens=56, completion_tokens=6
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    yield inputs.make_setting(Experiment(model=small, data=data), mesh)


@pytest.fixture(scope="module")
def state(setting, quick_compile):
  """Random weights before the first update."""
  params = jax.jit(partial(vlm.init, setting.model))(jax.random.key(0))
  memory = PLAIN.transform.init(()), hold_in_band(0.0, None).init(())
  key = jax.random.key(0)
  return init_state(params, OPTIMIZER, lambda: memory, key, setting.mesh)[0]


@pytest.fixture(scope="module")
def rows(setting, state):
  """Graded rollouts of 8 comparisons of digits."""
  source = comparisons.open_source("digit-pairs/train", size=8, seed=0)
  # Half of the rows are rewarded, so that there is something to learn.
  graded = Term(lambda texts, _: np.arange(len(texts), dtype=np.float32) % 2)
  return rollout(
    make_sample(setting, samples_per_prompt=1, temperature=1.0),
    state.params,
    read_prompts(setting, source, 0, 8),
    jax.random.key(1),
    {"result": graded},
    setting.tokenizer,
    setting.mesh,
  ).trajectories


@pytest.fixture(scope="module")
def update(setting):
  """`(state, frozen, rows) -> (state, metrics, rows to show)`."""
  controller = hold_in_band(0.0, None)
  fixed = (setting, TWICE, PLAIN, controller, OPTIMIZER)
  return jax.jit(partial(policy._update, *fixed))


def test_the_actor_sees_the_picture(state, rows, update):
  blank = rows._replace(
    prompts=rows.prompts._replace(images=jnp.zeros_like(rows.prompts.images))
  )
  gaps = [update(state, {}, shown)[1]["sampler_gap"] for shown in (rows, blank)]
  # The sampler saw the picture: its log-probs are the trainer's, and are not
  # those of a trainer that looks at nothing.
  assert gaps[0] < 1e-5 and gaps[1] > 1e-2


def test_rows_of_a_step_can_be_several_updates(setting, state, rows, update):
  after, _, _ = update(state, {}, rows)
  assert int(after.step) == 2

  # By hand: the first four rows, and the other four from what they gave.
  @jax.jit
  def learn(params, moments, rows):
    gradient = jax.grad(partial(_loss, setting, rows))(params)
    updates, moments = OPTIMIZER.update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments

  by_hand, moments = state.params, state.opt_state
  for part in (slice(0, 4), slice(4, 8)):
    some = jax.tree.map(lambda x, part=part: x[part], rows)
    by_hand, moments = learn(by_hand, moments, some)
  moved = lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).max()
  off = jax.tree.leaves(jax.tree.map(moved, after.params, by_hand))
  far = jax.tree.leaves(jax.tree.map(moved, state.params, by_hand))
  assert max(off) < 0.02 * max(far)


def _loss(setting, rows, params):
  """-A log p of each answer, meaned: REINFORCE without a baseline."""
  logp, _ = vlm.completion_logp(
    setting.model,
    params,
    rows.prompts,
    rows.tokens,
    rows.mask,
    image_token=setting.image_token,
  )
  of_rows = jnp.sum(jnp.where(rows.mask, logp, 0), axis=1)
  return -jnp.mean(rows.rewards * of_rows)


def test_log_probs_that_an_algorithm_asks_for(setting, state, rows):
  config = dataclasses.replace(
    TWICE, algorithm={"name": "grpo", "kl_weight": 0.1}, cache="int8"
  )
  some, held = split_trainable(
    OptimizerConfig(trainable="decoder/.*"), state.params
  )
  add = policy._make_logp(setting, config, some, held)
  moved = jax.tree.map(lambda x: x + 0.01, some)
  t = add(rows, moved)
  own, of_moved = (
    vlm.completion_logp(
      setting.model,
      pytree.join(weights, held),
      *(rows.prompts, rows.tokens, rows.mask),
      image_token=setting.image_token,
    )[0]
    for weights in (some, moved)
  )
  close = partial(np.testing.assert_allclose, atol=1e-4)
  close(np.where(t.mask, t.reference_logp, 0), np.where(t.mask, own, 0))
  close(np.where(t.mask, t.trainer_logp, 0), np.where(t.mask, of_moved, 0))
  shapes = policy.trajectory_shapes(setting.layout, config, list(rows.terms))
  assert jax.tree.structure(shapes) == jax.tree.structure(t)
  plain = policy._make_logp(setting, TWICE, some, held)(rows, some)
  assert plain.reference_logp is plain.trainer_logp is None


def test_a_row_whose_tokens_have_advantages_shows_their_mean():
  t = _rows([1.0, 0.0, 1.0])
  each = jnp.arange(15.0).reshape(3, 5)
  assert sample._advantage(t._replace(advantages=each), 2) == (10 + 11 + 12) / 3
  assert sample._advantage(t._replace(advantages=each[:, 4]), 2) == 14
