"""Rotary position embedding."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rotate(
  x: Float[Array, "B T H E"],
  positions: Int[Array, "B T"] | Int[Array, "B T axes"],
  *,
  theta: float,
  sections: Sequence[int] = (),
) -> Float[Array, "B T H E"]:
  """Turns the pair (x[i], x[i + E/2]) by the angle position / theta^(2i/E).

  The halves convention of Llama and Qwen2 checkpoints
  (https://arxiv.org/abs/2104.09864). Angles are float32.

  Args:
    x: queries or keys.
    positions: one number a token, or one for each of several axes.
    theta: base of the frequencies.
    sections: how many frequencies belong to each axis, in order; their sum is
      E/2 (M-RoPE, https://arxiv.org/abs/2409.12191).
  """
  half = x.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if positions.ndim == 3:
    axis = np.repeat(np.arange(len(sections)), sections)
    positions = positions[..., axis]
  else:
    positions = positions[..., None]
  return _turn(x, positions.astype(jnp.float32) * frequency)


def rotate_by_place(
  x: Float[Array, "B T H E"], place: Int[Array, "B T 2"], *, theta: float
) -> Float[Array, "B T H E"]:
  """As `rotate`, the first E/4 pairs by the row, the others by the column.

  Both have the same frequencies theta^(-4i/E): the rotary embedding of the
  Qwen2-VL vision tower (https://arxiv.org/abs/2409.12191).
  """
  quarter = x.shape[-1] // 4
  frequency = theta ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
  angle = place[..., None].astype(jnp.float32) * frequency
  return _turn(x, angle.reshape(*place.shape[:2], -1))


def _turn(x, angle):
  """Turns the pair (x[i], x[i + E/2]) of all heads by angle[..., i]."""
  angle = angle[:, :, None]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [left * cos - right * sin, right * cos + left * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
