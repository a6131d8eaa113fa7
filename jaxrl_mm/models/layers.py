"""The few layers everything is made of. Parameters only, no other state."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Einsum(nn.Module):
  """A linear map written as an einsum, with an optional bias.

  Attributes:
    equation: for example "btd,dhe->bthe"; the second operand is the kernel.
    shape: shape of the kernel.
    bias: shape of the bias, or () for none.

  The kernel starts normal with variance 1 / fan-in, where fan-in counts the
  kernel's letters that do not reach the output. Where the weights hold a
  low-rank adapter (see `lora`) its output is added. An int8 kernel has a
  `kernel_scale` beside it, one number an output.
  """

  equation: str
  shape: tuple[int, ...]
  bias: tuple[int, ...] = ()
  param_dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    inputs, output = self.equation.split("->")
    of_x, letters = inputs.split(",")
    fan_in = math.prod(
      n for a, n in zip(letters, self.shape) if a not in output
    )
    dtype = jnp.dtype(self.param_dtype)
    kernel = self.param(
      "kernel", nn.initializers.normal(fan_in**-0.5), self.shape, dtype
    )
    y = jnp.einsum(self.equation, x, kernel.astype(x.dtype))
    if self.has_variable("params", "kernel_scale"):
      y = y * self.get_variable("params", "kernel_scale").astype(x.dtype)
    if self.has_variable("params", "lora_a"):
      y = y + self._adapter(x, of_x, letters, output)
    if self.bias:
      bias = self.param("bias", nn.initializers.zeros, self.bias, dtype)
      y = y + bias.astype(x.dtype)
    return y

  def _adapter(self, x, of_x, letters, output):
    """scale * (x A) B, with the rank as letter z."""
    a, b, scale = (
      self.get_variable("params", name).astype(x.dtype)
      for name in ("lora_a", "lora_b", "lora_scale")
    )
    summed = "".join(n for n in letters if n not in output)
    others = "".join(n for n in letters if n in output)
    kept = "".join(n for n in of_x if n not in summed)
    low = jnp.einsum(f"{of_x},{summed}z->{kept}z", x, a)
    return scale * jnp.einsum(f"{kept}z,z{others}->{output}", low, b)


class RMSNorm(nn.Module):
  """x / rms(x) in float32, cast back, then scaled."""

  eps: float
  param_dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    scale = self.param(
      "scale",
      nn.initializers.ones,
      (x.shape[-1],),
      jnp.dtype(self.param_dtype),
    )
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(mean_square + self.eps)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


class LayerNorm(nn.Module):
  """(x - mean) / std in float32, scaled and shifted."""

  eps: float
  param_dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    shape, dtype = (x.shape[-1],), jnp.dtype(self.param_dtype)
    scale = self.param("scale", nn.initializers.ones, shape, dtype)
    bias = self.param("bias", nn.initializers.zeros, shape, dtype)
    wide = x.astype(jnp.float32)
    # Centred first: E[x^2] - E[x]^2 loses all digits far from zero.
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(wide * wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(variance + self.eps)
    wide = wide * scale.astype(jnp.float32) + bias.astype(jnp.float32)
    return wide.astype(x.dtype)
