"""One contract for every named algorithm, and what each is made of."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrl_mm import algorithms
from jaxrl_mm.structs import Trajectories

pytestmark = pytest.mark.usefixtures("quick_compile")

GOLDEN = Path(__file__).parents[1] / "golden"
R1 = np.load(GOLDEN / "stable_reinforce.npz")
TRL = np.load(GOLDEN / "mpo_grpo.npz")

NAMED = {
  "grpo": algorithms.grpo(),
  "dr_grpo": algorithms.dr_grpo(max_length=6),
  "dapo": algorithms.dapo(max_length=6, overlong_buffer=2),
  "gspo": algorithms.gspo(),
  "cispo": algorithms.cispo(),
  "rloo": algorithms.rloo(),
  "reinforce": algorithms.reinforce(),
  "reinforce_plus_plus": algorithms.reinforce_plus_plus(),
  "reinforce_plus_plus_baseline": algorithms.reinforce_plus_plus_baseline(),
  "ppo": algorithms.ppo(),
  "stable_reinforce": algorithms.stable_reinforce(),
  "r1v2": algorithms.r1v2(capacity=16),
}
EVERY = pytest.mark.parametrize("name", NAMED)


def rollouts(seed=0, rewards=None, length=6):
  """16 rows, 4 of each of 4 prompts, of 1 to 5 tokens."""
  rng = np.random.default_rng(seed)
  mask = np.arange(length) < rng.integers(1, length, 16)[:, None]
  normal = lambda: jnp.asarray(rng.normal(-1, 0.2, mask.shape), jnp.float32)
  if rewards is None:
    rewards = rng.integers(0, 2, 16)
  rewards = jnp.asarray(rewards, jnp.float32)
  # A critic that knows the mean reward and nothing else.
  values = jnp.full(mask.shape, np.asarray(rewards, float).mean(), jnp.float32)
  return Trajectories(
    tokens=jnp.asarray(rng.integers(0, 9, mask.shape), jnp.int32),
    mask=jnp.asarray(mask),
    logp=normal(),
    group=jnp.repeat(jnp.arange(4), 4),
    rewards=rewards,
    verifiable=rewards,
    advantages=jnp.zeros(16),
    reference_logp=normal(),
    values=jnp.where(mask, values, 0),
  )


def run(algorithm, logp, t):
  """Loss, gradient, transformed trajectories and state of one update."""
  t, state = algorithm.transform.update(t, algorithm.transform.init(t))
  (loss, _), gradient = jax.value_and_grad(algorithm.loss, has_aux=True)(
    logp, t
  )
  return loss, gradient, t, state


RUN = {
  name: jax.jit(lambda logp, t, a=a: run(a, logp, t)[:2])
  for name, a in NAMED.items()
}


def new_logp(t, seed=1):
  noise = np.random.default_rng(seed).normal(0, 0.1, t.logp.shape)
  return t.logp + jnp.asarray(noise, jnp.float32)


def same(one, other, rtol=1e-5, atol=1e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), one, other
  )


@EVERY
def test_jit_changes_nothing_and_numpy_will_do(name):
  t = rollouts()
  logp, t = jax.tree.map(np.asarray, (new_logp(t), t))
  loss, gradient, _, _ = run(NAMED[name], logp, t)
  assert np.isfinite(loss) and np.abs(gradient).max() > 0
  assert not np.asarray(gradient)[~t.mask].any()
  same((loss, gradient), RUN[name](logp, t))


@EVERY
def test_eight_devices_give_the_numbers_of_one(name):
  t = rollouts()
  logp = new_logp(t)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  spread = jax.device_put((logp, t), rows)
  assert len(spread[0].sharding.device_set) == 8
  same(RUN[name](logp, t), RUN[name](*spread))


@EVERY
def test_equal_rewards_give_no_gradient(name):
  for reward in (0.0, 1.0, 0.1):
    t = rollouts(rewards=np.full(16, reward))
    if name == "dapo":  # its length penalty would tell the rows apart
      t = t._replace(mask=t.mask.at[:, 4:].set(False))
    loss, gradient = RUN[name](new_logp(t), t)
    assert np.isfinite(loss)
    np.testing.assert_array_equal(gradient, 0)


@EVERY
def test_empty_rows_change_nothing(name):
  t = rollouts()
  logp = new_logp(t)
  junk = jax.tree.map(lambda x: x[:8], rollouts(7))
  junk = junk._replace(
    mask=junk.mask & False, rewards=junk.rewards + 50, group=junk.group
  )
  longer = jax.tree.map(lambda *x: jnp.concatenate(x), t, junk)
  loss, gradient = RUN[name](logp, t)
  more, wider = RUN[name](jnp.concatenate([logp, junk.logp]), longer)
  same((loss, gradient), (more, wider[:16]))
  np.testing.assert_array_equal(wider[16:], 0)
  none = t._replace(mask=t.mask & False)
  loss, gradient = RUN[name](logp, none)
  assert float(loss) == 0 and not np.asarray(gradient).any()


@EVERY
def test_micro_batches_add_up_by_their_weights(name):
  algorithm, t = NAMED[name], rollouts()
  logp = new_logp(t)
  update = jax.jit(algorithm.transform.update)
  t, _ = update(t, algorithm.transform.init(t))
  both = jax.jit(lambda t: (algorithm.loss(logp, t)[0], algorithm.weight(t)))
  first = (jnp.arange(16) < 5)[:, None]
  whole, size = both(t)
  parts = [both(t._replace(mask=t.mask & half)) for half in (first, ~first)]
  losses, weights = (jnp.stack(x) for x in zip(*parts))
  same(jnp.sum(losses * weights) / size, whole, 1e-4)
  assert float(jnp.sum(weights)) == float(size)


@EVERY
def test_bfloat16_comes_close_to_float32(name):
  t = rollouts()
  narrow = lambda x: (
    x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x
  )
  small = jax.tree.map(narrow, t)
  loss, gradient = RUN[name](narrow(new_logp(t)), small)
  wide = jax.tree.map(
    lambda x, y: x.astype(y.dtype), (narrow(new_logp(t)), small), (t.logp, t)
  )
  expected, exact = RUN[name](*wide)
  assert loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
  same(loss, expected, 1e-5)
  same(gradient.astype(jnp.float32), exact, 1e-2, 1e-4)


@EVERY
def test_state_survives_a_checkpoint(name, tmp_path):
  transform, t = NAMED[name].transform, rollouts()
  _, state = transform.update(t, transform.init(t))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", {"algorithm": state, "step": 1})
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(
      tmp_path / "state", {"algorithm": transform.init(t), "step": 0}
    )["algorithm"]
  nothing = t._replace(rewards=t.rewards * 0, verifiable=t.verifiable * 0)
  plain = lambda s: jax.tree.map(
    lambda x: (
      jax.random.key_data(x)
      if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
      else x
    ),
    s,
  )
  jax.tree.map(np.testing.assert_array_equal, plain(state), plain(restored))
  one, other = (transform.update(nothing, s) for s in (state, restored))
  jax.tree.map(np.testing.assert_array_equal, plain(one), plain(other))


@EVERY
def test_a_two_armed_bandit_is_solved(name):
  """8 prompts, 4 draws of each, the second arm pays."""
  algorithm = NAMED[name]

  def draw(logits, key):
    arm = jax.random.bernoulli(key, jax.nn.softmax(logits)[1], (32, 1))
    arm = arm.astype(jnp.int32)
    reward = arm[:, 0].astype(jnp.float32)
    logp = jax.nn.log_softmax(logits)[arm]
    return Trajectories(
      tokens=arm,
      mask=jnp.ones((32, 1), bool),
      logp=logp,
      group=jnp.arange(32) // 4,
      rewards=reward,
      verifiable=reward,
      advantages=jnp.zeros(32),
      reference_logp=jnp.full((32, 1), jnp.log(0.5)),
      values=jnp.full((32, 1), 0.5),
    )

  def step(carry, key):
    logits, state = carry
    t, state = algorithm.transform.update(draw(logits, key), state)
    loss = lambda x: algorithm.loss(jax.nn.log_softmax(x)[t.tokens], t)[0]
    return (logits - 0.5 * jax.grad(loss)(logits), state), None

  @jax.jit
  def solve(keys):
    logits = jnp.zeros(2)
    state = algorithm.transform.init(draw(logits, keys[0]))
    (logits, _), _ = jax.lax.scan(step, (logits, state), keys[1:])
    return logits

  logits = solve(jax.random.split(jax.random.key(0), 201))
  assert jax.nn.softmax(logits)[1] > 0.9


BY_GROUP = [
  "grpo",
  "dr_grpo",
  "dapo",
  "gspo",
  "cispo",
  "rloo",
  "reinforce_plus_plus_baseline",
  "r1v2",
]


# The critic of PPO would have to learn of the constant first.
@pytest.mark.parametrize("name", [n for n in NAMED if n != "ppo"])
def test_a_constant_in_the_rewards_changes_nothing(name):
  t = rollouts()
  logp = new_logp(t)
  constant = 3 * t.group.astype(jnp.float32) if name in BY_GROUP else 3.0
  moved = t._replace(rewards=t.rewards + constant)
  same(RUN[name](logp, t), RUN[name](logp, moved), 1e-3, 1e-5)


@EVERY
def test_order_of_rows_changes_nothing(name):
  t = rollouts()
  logp = new_logp(t)
  order = np.random.default_rng(0).permutation(16)
  mixed = jax.tree.map(lambda x: x[order], t)
  loss, gradient = RUN[name](logp, t)
  again, moved = RUN[name](logp[order], mixed)
  same((loss, gradient[order]), (again, moved), 1e-4, 1e-5)


@EVERY
def test_what_lies_under_the_mask_changes_nothing(name):
  t = rollouts()
  logp = new_logp(t)
  spoil = lambda x: jnp.where(t.mask, x, jnp.nan)
  worse = t._replace(
    tokens=jnp.where(t.mask, t.tokens, -1),
    logp=spoil(t.logp),
    reference_logp=spoil(t.reference_logp),
    values=spoil(t.values),
  )
  same(RUN[name](logp, t), RUN[name](spoil(logp), worse))


@EVERY
def test_a_gap_between_sampler_and_trainer_is_weighed(name):
  """The ratio is to the trainer's log-probs; the gap only scales."""
  t = rollouts()
  t = t._replace(trainer_logp=t.logp, logp=t.logp - jnp.log(1.5))
  _, gradient = RUN[name](new_logp(t._replace(logp=t.trainer_logp)), t)
  fair = t._replace(logp=t.trainer_logp, trainer_logp=None)
  _, expected = RUN[name](new_logp(fair), fair)
  same(gradient, 1.5 * expected, 1e-4, 1e-6)


def test_stable_reinforce_is_the_released_one_end_to_end():
  """KL, returns, filter and loss of R1-Reward on six rollouts."""
  case = "e2e_kl1e-3/"
  mask = R1[case + "out/action_mask"]
  get = lambda name: jnp.asarray(R1[f"{case}in/{name}"])
  t = Trajectories(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    mask=jnp.asarray(mask),
    logp=get("old_log_probs"),
    group=jnp.arange(6),
    rewards=get("rewards"),
    verifiable=get("rewards"),
    advantages=jnp.zeros(6),
    reference_logp=get("ref_log_probs"),
  )
  algorithm = algorithms.stable_reinforce(kl_weight=1e-3, bounds="released")
  loss, gradient, t, _ = run(algorithm, get("new_log_probs_rightpad"), t)
  # The original pads on the left when it joins rows.
  left = R1[case + "out/batch_action_mask"]
  np.testing.assert_allclose(
    np.asarray(t.advantages)[mask],
    R1[case + "out/batch_advantages"][left],
    1e-5,
    1e-6,
  )
  np.testing.assert_allclose(loss, R1[case + "out/loss"], 1e-5)
  np.testing.assert_allclose(
    np.asarray(gradient)[mask],
    R1[case + "out/grad_log_probs"][left],
    1e-5,
    1e-7,
  )


def test_grpo_with_its_penalty_is_trls():
  logp, old, reference, mask, advantages = (
    jnp.asarray(TRL[f"grpo/{x}"], jnp.float32)
    for x in ("logps", "old_logps", "ref_logps", "mask", "advantages")
  )
  t = jax.tree.map(
    lambda x: x[:6, :1].repeat(7, 1) if x.ndim > 1 else x[:6], rollouts()
  )
  t = t._replace(
    mask=mask > 0, logp=old, reference_logp=reference, advantages=advantages
  )
  loss, metrics = algorithms.grpo(kl_weight=0.04).loss(logp, t)
  np.testing.assert_allclose(loss, TRL["grpo/grpo_b004/loss"], 1e-5)
  assert metrics["kl"] > 0


def test_ppo_has_a_loss_for_its_critic():
  algorithm, t = NAMED["ppo"], rollouts()
  _, _, t, _ = run(algorithm, t.logp, t)
  loss, metrics = algorithm.value_loss(t.values, t)
  error = np.abs(t.values - t.returns)[np.asarray(t.mask)].mean()
  assert loss > 0 and metrics["value_error"] == pytest.approx(error)


def test_dapo_leaves_uniform_groups_out_of_its_mean():
  rewards = np.array([1, 0, 1, 0] + [1] * 12)
  t = rollouts(rewards=rewards)
  t = t._replace(mask=t.mask.at[:, 4:].set(False))
  _, _, t, _ = run(NAMED["dapo"], t.logp, t)
  assert t.mask[:4].any(1).all() and not t.mask[4:].any()
