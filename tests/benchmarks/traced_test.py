"""Programs of a few lines, whose arrays are counted on paper."""

import jax
import jax.numpy as jnp

from benchmarks import traced


def test_the_scores_of_attention_are_named():
  def attend(x):
    with jax.named_scope("attention"):
      scores = jnp.einsum("td,sd->ts", x, x) / 2
    return jnp.einsum("ts,sd->td", jax.nn.softmax(scores), x)

  def layers(x):
    step = lambda x, _: (jax.checkpoint(attend)(x), None)
    return jnp.sum(jax.lax.scan(step, x, None, length=3)[0])

  shape = jax.ShapeDtypeStruct((100, 8), jnp.float32)
  found = traced.largest(jax.jit(jax.grad(layers)).trace(shape).jaxpr)
  # 100 * 100 scores; then what 3 layers keep for the backward pass.
  assert [size for size, _ in found[:3]] == [40_000, 9_600, 3_200]
  scores, kept = (what for _, what in found[:2])
  assert "float32[100,100] over all chips" in scores
  assert "attention/" in scores and scores.endswith("/dot_general")
  assert "float32[3,100,8]" in kept and kept.endswith("scan")


def test_other_platforms_do_not_count():
  def attend(x):
    whole, plain = lambda x: x @ x.T @ x, lambda x: x @ (x.T @ x)
    return jax.lax.platform_dependent(x, tpu=plain, default=whole)

  shape = jax.ShapeDtypeStruct((100, 8), jnp.float32)
  found = traced.largest(jax.jit(attend).trace(shape).jaxpr)
  assert [size for size, _ in found] == [3_200, 8 * 8 * 4]
