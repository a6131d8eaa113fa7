"""The kernels of other platforms, step by step on this one."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import sharding
from jaxrl_mm.models import flash

pytestmark = pytest.mark.usefixtures("quick_compile")


def _random(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape, np.float32))


def _plain(q, k, v, of_q, of_k):
  """By the logits of all pairs."""
  queries, keys = q.shape[1], k.shape[1]
  past = np.tri(queries, keys, keys - queries, dtype=bool)
  seen = past & (of_q[:, :, None] == of_k[:, None])
  k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
  logits = jnp.einsum("bthe,bshe->bhts", q, k) / np.sqrt(q.shape[3])
  weights = jax.nn.softmax(jnp.where(seen[:, None], logits, -jnp.inf))
  return jnp.einsum("bhts,bshe->bthe", weights, v)


def _padded():
  """Two blocks less some, with padding in front and behind."""
  of = np.ones((2, 160), np.int32)
  of[0, :37] = of[1, 150:] = 0
  return of, of


def _packed():
  """Three rows in one and the padding behind them; two rows in one."""
  parts = [70, 1, 80, 9], [90, 70]
  of = np.stack([np.repeat([1, 2, 3, 0][: len(p)], p) for p in parts])
  return of, of


def _answers(prompt):
  """Answers behind their prompts, which have padding in front."""
  of = np.ones((2, prompt + 140), np.int32)
  of[0, :50] = of[1, -20:] = 0
  return of[:, -140:], of


CASES = {
  "padded": _padded(),
  "packed": _packed(),
  "answers": _answers(70),
  "answers, whole blocks of keys": _answers(116),
}


@pytest.fixture(params=CASES)
def sequences(request, monkeypatch):
  """q, k, v, of_q, of_k with 4 heads, two a key head, in several blocks."""
  monkeypatch.setattr(flash, "LARGEST_BLOCK", flash.LANES)
  of_q, of_k = (jnp.asarray(of, jnp.int32) for of in CASES[request.param])
  q = _random(*of_q.shape, 4, 128)
  k, v = _random(2, *of_k.shape, 2, 128, seed=1)
  return q, k, v, of_q, of_k


def _of_both(attend, q, k, v, of_q, of_k):
  """Outputs and gradients of real queries, rematerialised as in a step."""
  weights = _random(*q.shape, seed=7) * (of_q > 0)[..., None, None]

  def loss(q, k, v):
    out = jax.checkpoint(attend)(q, k, v, of_q, of_k)
    return jnp.sum(weights * out), out

  run = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
  gradients, out = run(q, k, v)
  assert np.isfinite(out).all()
  return [jnp.where((of_q > 0)[..., None, None], out, 0), *gradients]


def test_splash_attention_equals_the_plain_one(sequences):
  got = _of_both(partial(flash.splash, interpret=True), *sequences)
  expected = _of_both(_plain, *sequences)
  for name, g, e in zip(["out", *"qkv"], got, expected):
    np.testing.assert_allclose(g, e, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("sizes, sequence", [((2, 1, 2), 1), ((1, 1, 2), 4)])
@pytest.mark.parametrize("sequences", ["answers"], indirect=True)
def test_devices_share_rows_heads_and_queries(sequences, sizes, sequence):
  count = math.prod(sizes) * sequence
  mesh = sharding.make_mesh(
    *sizes, devices=jax.devices()[:count], sequence=sequence
  )
  expected = _of_both(_plain, *sequences)
  with jax.set_mesh(mesh):
    got = _of_both(partial(flash.splash, interpret=True), *sequences)
  for name, g, e in zip(["out", *"qkv"], got, expected):
    np.testing.assert_allclose(g, e, atol=1e-3, err_msg=name)


def test_devices_that_share_the_queries_of_a_row_work_alike():
  order = flash._order(8, 2)
  assert order.tolist() == [0, 1, 6, 7, 4, 5, 2, 3]
  past = [1 + token for token in order]
  assert sum(past[:4]) == sum(past[4:])
  assert flash._order(8, 1).tolist() == list(range(8))


@pytest.mark.parametrize(
  "length, block", [(128, 128), (256, 256), (5120, 512), (640, 128)]
)
def test_blocks_divide_the_length(length, block):
  blocks = flash._blocks(length, 384)
  assert (blocks.block_q_dkv, blocks.block_kv_dkv) == (block, 384)


def test_kernels_are_asked_only_for_what_they_take(monkeypatch):
  q, k = jnp.ones((2, 160, 4, 128)), jnp.ones((2, 160, 2, 128))
  narrow = lambda x: x.astype(jnp.bfloat16)
  assert flash.splash_fits(q, k)
  assert not flash.splash_fits(q[:, :100], k)
  assert not flash.splash_fits(q, k[:, :150])
  assert not flash.splash_fits(q[..., :64], k[..., :64])
  with jax.set_mesh(sharding.make_mesh(4, 1, 2)):
    assert not flash.splash_fits(q, k)
  assert not flash.cudnn_fits(narrow(q), narrow(k))
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert flash.cudnn_fits(narrow(q), narrow(k))
  assert not flash.cudnn_fits(q, k)
  assert not flash.cudnn_fits(narrow(q[:, 1:]), narrow(k))
  assert not flash.cudnn_fits(narrow(q[..., :4]), narrow(k[..., :4]))
