"""The algorithm a config names, and what a step is described by."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm.errors import InputError
from jaxrl_mm.structs import Prompts, Trajectories
from jaxrl_mm.train import policy
from jaxrl_mm.train.policy import PolicyConfig


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
