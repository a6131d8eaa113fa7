import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import pytree, sharding
from jaxrl_mm.models import vlm
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.optimizer import OptimizerConfig, make_optimizer
from jaxrl_mm.structs import Demonstrations, Prompts
from jaxrl_mm.train import step
from jaxrl_mm.train_state import TrainState, optimizer_shardings

pytestmark = pytest.mark.usefixtures("quick_compile")

ROWS, LENGTH, WIDTH = 8, 5, 4
WEIGHTS = {
  "w": np.random.default_rng(0).standard_normal((WIDTH, WIDTH), np.float32),
  "b": np.zeros(WIDTH, np.float32),
}


@pytest.fixture(scope="module")
def weights():
  return jax.tree.map(jnp.asarray, WEIGHTS)


@pytest.fixture(scope="module")
def batch():
  """Tokens with targets; row i keeps 1 + i % 5 of its five tokens."""
  rng = np.random.default_rng(1)
  x, y = rng.standard_normal((2, ROWS, LENGTH, WIDTH), np.float32)
  kept = np.arange(LENGTH) < 1 + np.arange(ROWS)[:, None] % LENGTH
  return {"x": jnp.asarray(x), "y": jnp.asarray(y), "mask": jnp.asarray(kept)}


def _token_mean(params, rows):
  """A mean over tokens, whose weight is their number."""
  error = jnp.tanh(rows["x"] @ params["w"] + params["b"]) - rows["y"]
  count = jnp.sum(rows["mask"])
  per_token = jnp.where(rows["mask"], jnp.sum(error**2, -1), 0)
  loss = jnp.sum(per_token) / jnp.maximum(count, 1)
  return loss, count.astype(jnp.float32), {"double": 2 * loss}


def _assert_close(got, expected, atol=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4),
    got,
    expected,
  )


# ------------------------------------------------------------ accumulation
@pytest.mark.parametrize("micro_batch", [1, 2, 4, 8])
def test_micro_batches_give_the_gradient_of_the_whole(
  weights, batch, micro_batch
):
  loss, _, metrics = _token_mean(weights, batch)
  gradient = jax.grad(lambda p: _token_mean(p, batch)[0])(weights)
  got = step.accumulate_gradients(_token_mean, weights, batch, micro_batch)
  _assert_close(got, (gradient, loss, metrics))


def test_a_micro_batch_without_tokens_counts_for_nothing(weights, batch):
  empty = batch | {"mask": batch["mask"].at[4:].set(False)}
  half = jax.tree.map(lambda x: x[:4], batch)
  got = step.accumulate_gradients(_token_mean, weights, empty, 2)
  _assert_close(got, step.accumulate_gradients(_token_mean, weights, half, 4))


def test_a_batch_without_tokens_has_no_gradient(weights, batch):
  nothing = batch | {"mask": jnp.zeros((ROWS, LENGTH), bool)}
  got = step.accumulate_gradients(_token_mean, weights, nothing, 2)
  assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(got))


def test_narrow_gradients_are_summed_in_float32():
  # In bfloat16 256 + 1 is 256.
  linear = lambda p, x: (jnp.sum(p * x), jnp.ones(()), {})
  rows = jnp.array([256.0] + [1.0] * 7, jnp.bfloat16)
  gradient, *_ = step.accumulate_gradients(
    linear, jnp.ones((), jnp.bfloat16), rows, 1
  )
  assert gradient.dtype == jnp.float32
  assert gradient == 263 / 8


def test_rows_are_split_in_order():
  x = jnp.arange(16).reshape(8, 2)
  got = step.split_rows({"x": x}, 2)["x"]
  np.testing.assert_array_equal(got, x.reshape(4, 2, 2))


def test_on_a_mesh_each_device_splits_its_own_rows():
  mesh = sharding.make_mesh(2, 2, 2)
  rows = sharding.to_device(np.arange(8), mesh)
  with jax.set_mesh(mesh):
    got = jax.jit(partial(step.split_rows, micro_batch=1))(rows)
  np.testing.assert_array_equal(got, [[0, 2, 4, 6], [1, 3, 5, 7]])
  held = {s.device: np.asarray(s.data) for s in rows.addressable_shards}
  for part in got.addressable_shards:
    np.testing.assert_array_equal(np.ravel(part.data), held[part.device])


# -------------------------------------------------------------------- step
def _state(optimizer, params):
  """A new state; its weights are copies, for a step donates them."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=jax.tree.map(lambda w: jnp.asarray(np.array(w)), params),
    opt_state=jax.jit(optimizer.init)(params),
    algorithm=(),
    key=jax.random.key(0),
  )


def test_a_step_updates_weights_and_reports(weights, batch):
  optimizer = make_optimizer(OptimizerConfig(0.02), 10)
  train = step.make_train_step(_token_mean, optimizer, 2)
  gradient, loss, _ = step.accumulate_gradients(
    _token_mean, weights, batch, ROWS
  )
  norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradient)))
  state, metrics = train(_state(optimizer, weights), {}, batch)
  assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
  assert metrics["double"] == pytest.approx(2 * float(loss), rel=1e-5)
  assert metrics["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
  assert metrics["bad_steps"] == 0
  losses = [float(loss)]
  for _ in range(4):
    state, metrics = train(state, {}, batch)
    losses.append(float(metrics["loss"]))
  assert losses == sorted(losses, reverse=True)
  assert state.step == 5


def test_a_gradient_that_is_not_finite_leaves_weights_and_moments(
  weights, batch
):
  optimizer = make_optimizer(OptimizerConfig(0.1), 10)
  train = step.make_train_step(_token_mean, optimizer, 2)
  state, _ = train(_state(optimizer, weights), {}, batch)
  kept = lambda state: (state.params, state.opt_state.inner_state)
  before = jax.tree.map(np.array, kept(state))
  broken = batch | {"x": batch["x"].at[3, 0, 0].set(jnp.nan)}
  for count in (1, 2):
    state, metrics = train(state, {}, broken)
    jax.tree.map(np.testing.assert_array_equal, kept(state), before)
    assert metrics["bad_steps"] == count
    assert not np.isfinite(metrics["gradient_norm"])
  state, metrics = train(state, {}, batch)
  assert metrics["bad_steps"] == 0
  assert (state.params["w"] != before[0]["w"]).any()
  assert state.step == 4


def test_bfloat16_weights_are_trained_and_stay_bfloat16(weights, batch):
  narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
  optimizer = make_optimizer(OptimizerConfig(0.05), 10)
  train = step.make_train_step(_token_mean, optimizer, 4)
  state, losses = _state(optimizer, narrow), []
  for _ in range(4):
    state, metrics = train(state, {}, batch)
    losses.append(float(metrics["loss"]))
  assert losses == sorted(losses, reverse=True)
  assert all(w.dtype == jnp.bfloat16 for w in jax.tree.leaves(state.params))


# ------------------------------------------------------ the model on a mesh
IMAGE = 31


@pytest.fixture(scope="module")
def demonstrations():
  """Four prompts twice, with answers of different lengths."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, IMAGE, size=(ROWS, 8), dtype=np.int32)
  tokens[:, 1:5] = IMAGE
  group = np.arange(ROWS, dtype=np.int32) // 2
  tokens = tokens[2 * group]
  images = rng.integers(256, size=(4, 1, 8, 8, 3)).astype(np.uint8)[group]
  mask = np.arange(6) < 1 + np.arange(ROWS)[:, None] % 6
  answers = rng.integers(1, IMAGE, size=(ROWS, 6), dtype=np.int32) * mask
  prompts = Prompts(tokens, np.ones((ROWS, 8), bool), images, group)
  return Demonstrations(prompts, answers, mask)


@pytest.fixture(scope="module")
def trainer(tiny, params):
  """One optimizer step of the model, on a mesh or on none."""
  single = dataclasses.replace(
    tiny,
    vision=dataclasses.replace(tiny.vision, layers=1),
    decoder=dataclasses.replace(tiny.decoder, layers=1),
  )
  weights = pytree.map_with_name(
    lambda name, w: w[:1] if "/layers/" in name else w, params
  )

  def loss(params, rows, room=0):
    logp, _ = vlm.completion_logp(
      single,
      params,
      *rows,
      image_token=IMAGE,
      samples_per_prompt=2,
      room=room,
      chunk=4,
    )
    count = jnp.sum(rows.mask)
    mean = -jnp.sum(logp * rows.mask) / jnp.maximum(count, 1)
    return mean, count.astype(jnp.float32), {}

  trained, frozen = pytree.split(weights, "(projector|decoder)/.*")
  optimizer = make_optimizer(OptimizerConfig(1e-2), 10)

  def layout(mesh):
    everywhere = sharding.replicated(mesh)
    placed = param_shardings(mesh, trained)
    return TrainState(
      step=everywhere,
      params=placed,
      opt_state=optimizer_shardings(optimizer, trained, placed, everywhere),
      algorithm=(),
      key=everywhere,
    )

  def run(mesh, batch, micro_batch, room=0):
    state = _state(optimizer, trained)
    if mesh is None:
      train = step.make_train_step(loss, optimizer, micro_batch)
      return train(state, frozen, jax.tree.map(jnp.asarray, batch))
    places = layout(mesh)
    with jax.set_mesh(mesh):
      sizes = micro_batch, places, room
      of_rows = partial(loss, room=room)
      train = step.make_train_step(of_rows, optimizer, *sizes)
      state = jax.device_put(state, places)
      rest = jax.device_put(frozen, param_shardings(mesh, frozen))
      state, metrics = train(state, rest, sharding.to_device(batch, mesh))
    for array, place in zip(jax.tree.leaves(state), jax.tree.leaves(places)):
      assert array.sharding.is_equivalent_to(place, array.ndim)
    return state, metrics

  return run


@pytest.fixture(scope="module")
def alone(trainer, demonstrations):
  return trainer(None, demonstrations, ROWS)


@pytest.mark.parametrize(
  "sizes, sequence, micro_batch, room",
  [((2, 2, 2), 1, 1, 0), ((1, 2, 2), 2, 2, 0), ((1, 4, 1), 2, 2, 20)],
)
def test_every_mesh_takes_the_same_step(
  trainer, demonstrations, alone, sizes, sequence, micro_batch, room
):
  mesh = sharding.make_mesh(*sizes, sequence=sequence)
  state, metrics = trainer(mesh, demonstrations, micro_batch, room)
  expected, expected_metrics = alone
  for name in ("loss", "gradient_norm"):
    wanted = float(expected_metrics[name])
    assert metrics[name] == pytest.approx(wanted, rel=1e-4)
  # Adam's first step is the sign of a gradient; its first moment is a tenth.
  moments = lambda state: {
    name: np.asarray(x)
    for name, x in pytree.named_leaves(state.opt_state)
    if "/mu/" in name
  }
  assert len(moments(expected)) > 10
  _assert_close(moments(state), moments(expected), atol=1e-6)
