import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_mm.errors import InputError
from jaxrl_mm.optimizer import (
  OptimizerConfig,
  learning_rate,
  make_optimizer,
  split_trainable,
)

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": {"c": jnp.array([[3.0]])}}
GRADIENT = {"a": jnp.array([0.3, 0.0]), "b": {"c": jnp.array([[0.4]])}}


def _rates(config, steps, count):
  schedule = learning_rate(config, steps)
  return [float(schedule(step)) for step in range(count)]


def test_a_constant_rate_with_and_without_warm_up():
  assert _rates(OptimizerConfig(0.5), 10, 3) == [0.5] * 3
  warm = _rates(OptimizerConfig(0.5, warmup_steps=2), 10, 4)
  np.testing.assert_allclose(warm, [0, 0.25, 0.5, 0.5])


def test_the_cosine_falls_to_a_tenth():
  config = OptimizerConfig(1.0, warmup_steps=2, schedule="cosine")
  rates = _rates(config, 10, 12)
  np.testing.assert_allclose(rates[:3], [0, 0.5, 1])
  np.testing.assert_allclose(rates[6], 0.55, rtol=1e-5)
  np.testing.assert_allclose(rates[10:], 0.1, rtol=1e-5)
  cold = OptimizerConfig(1.0, schedule="cosine")
  assert _rates(cold, 10, 1) == [1.0]


def test_a_stage_of_warm_up_alone_has_a_cosine_too():
  config = OptimizerConfig(1.0, warmup_steps=5, schedule="cosine")
  assert np.isfinite(_rates(config, 3, 5)).all()


def test_an_unknown_schedule_is_named():
  with pytest.raises(InputError, match="schedule is 'linear'"):
    learning_rate(OptimizerConfig(schedule="linear"), 10)


def _adamw(config, gradients, params):
  """Clipping and AdamW in numpy, all weights in one vector."""
  m, v = np.zeros_like(params), np.zeros_like(params)
  for t, g in enumerate(gradients, 1):
    g = g * min(1, config.clip_norm / np.linalg.norm(g))
    m = config.b1 * m + (1 - config.b1) * g
    v = config.b2 * v + (1 - config.b2) * g * g
    step = m / (1 - config.b1**t) / (np.sqrt(v / (1 - config.b2**t)) + 1e-8)
    step = step + config.weight_decay * params
    params = params - config.learning_rate * step
  return params


def test_the_chain_is_clipping_and_adamw():
  config = OptimizerConfig(0.1, weight_decay=0.01, clip_norm=0.6, b2=0.9)
  optimizer = make_optimizer(config, 10)
  flatten = lambda tree: np.concatenate(
    [np.ravel(x) for x in jax.tree.leaves(tree)]
  )
  params, state, gradients = PARAMS, optimizer.init(PARAMS), []
  for scale in (1.0, 5.0, -0.1):
    gradient = jax.tree.map(lambda g, scale=scale: g * scale, GRADIENT)
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    gradients.append(flatten(gradient))
  expected = _adamw(config, gradients, flatten(PARAMS))
  np.testing.assert_allclose(flatten(params), expected, rtol=1e-5)


def test_the_pattern_decides_what_is_trained():
  trained, frozen = split_trainable(OptimizerConfig(trainable="b/.*"), PARAMS)
  assert trained == {"b": PARAMS["b"]}
  assert frozen == {"a": PARAMS["a"]}


def test_a_pattern_that_trains_nothing_is_an_error():
  with pytest.raises(InputError, match="'projector' matches none of the 2"):
    split_trainable(OptimizerConfig(trainable="projector"), PARAMS)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_gradient_that_is_not_finite_changes_no_moment(bad):
  optimizer = make_optimizer(OptimizerConfig(0.1), 10)
  _, state = optimizer.update(GRADIENT, optimizer.init(PARAMS), PARAMS)
  broken = GRADIENT | {"a": jnp.array([0.0, bad])}
  for count in (1, 2):
    updates, after = optimizer.update(broken, state, PARAMS)
    assert all((u == 0).all() for u in jax.tree.leaves(updates))
    jax.tree.map(
      np.testing.assert_array_equal, after.inner_state, state.inner_state
    )
    assert after.notfinite_count == after.total_notfinite == count
    state = after
  _, state = optimizer.update(GRADIENT, state, PARAMS)
  assert (state.notfinite_count, state.total_notfinite) == (0, 2)


def test_shapes_are_enough_to_make_it():
  shapes = jax.eval_shape(lambda: PARAMS)
  optimizer = make_optimizer(OptimizerConfig(), 10)
  jax.eval_shape(optimizer.init, shapes)


def test_bfloat16_weights_keep_dtype_and_take_float32_gradients():
  narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), PARAMS)
  optimizer = make_optimizer(OptimizerConfig(0.1), 10)
  state = optimizer.init(narrow)
  updates, after = optimizer.update(GRADIENT, state, narrow)
  assert jax.eval_shape(lambda: state) == jax.eval_shape(lambda: after)
  params = optax.apply_updates(narrow, updates)
  assert params["a"].dtype == jnp.bfloat16
  assert params["a"][0] < narrow["a"][0]


def test_bfloat16_moments_take_half_the_room_and_nearly_the_same_steps():
  configs = OptimizerConfig(0.1), OptimizerConfig(0.1, moments="bfloat16")
  gone = []
  for config in configs:
    optimizer = make_optimizer(config, 10)
    params, state = PARAMS, optimizer.init(PARAMS)
    for scale in (1.0, 0.5, -0.3):
      gradient = jax.tree.map(lambda g, scale=scale: g * scale, GRADIENT)
      updates, state = optimizer.update(gradient, state, params)
      assert all(u.dtype == jnp.float32 for u in jax.tree.leaves(updates))
      params = optax.apply_updates(params, updates)
    moments = {x.dtype for x in jax.tree.leaves(state) if x.size > 1}
    assert moments == {jnp.dtype(config.moments)}
    gone.append(params["b"]["c"] - PARAMS["b"]["c"])
  assert gone[0] != gone[1]
  # A moment is off by at most 2^-9 of itself a step.
  np.testing.assert_allclose(gone[1], gone[0], rtol=0.02)


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"moments": "int8"}, "moments is 'int8'"),
    ({"moments": "bfloat16", "b2": 0.999}, "b2 is 0.999.*lower it to 0.99"),
  ],
)
def test_moments_that_cannot_be(settings, message):
  with pytest.raises(InputError, match=message):
    make_optimizer(OptimizerConfig(**settings), 10)
