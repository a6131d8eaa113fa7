"""Rotary position embedding."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
  x: Float[Array, "B T H E"], positions: Int[Array, "B T"], *, theta: float
) -> Float[Array, "B T H E"]:
  """Turns the pair (x[i], x[i + E/2]) by the angle position / theta^(2i/E).

  The halves convention of Llama and Qwen2 checkpoints
  (https://arxiv.org/abs/2104.09864). Angles are float32.
  """
  half = x.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[..., None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [left * cos - right * sin, right * cos + left * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
