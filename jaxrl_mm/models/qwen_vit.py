"""The vision tower of Qwen2.5-VL (https://arxiv.org/abs/2502.13923): pictures
of any size, attention in windows, and the merger behind it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxrl_mm.models import attention, rope
from jaxrl_mm.models.config import ModelConfig, QwenVisionConfig
from jaxrl_mm.models.layers import Einsum, RMSNorm
from jaxrl_mm.sharding import constrain
from jaxrl_mm.structs import Patches

# CLIP statistics of the RGB channels, which the tower was trained with.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# Windows whose patches ask at a time in a full layer: their logits exist
# together, and those of a whole large picture would fill the memory.
WINDOWS_AT_A_TIME = 8


def normalize(
  pixels: UInt8[Array, "*any channels"], dtype: jnp.dtype
) -> Float[Array, "*any channels"]:
  """Bytes to standardised colours, on device: pixels travel as bytes."""
  scaled = pixels.astype(jnp.float32) / 255
  return ((scaled - jnp.array(MEAN)) / jnp.array(STD)).astype(dtype)


def attend_in_windows(
  q: Float[Array, "B W N H E"],
  k: Float[Array, "B W N H E"],
  v: Float[Array, "B W N H E"],
  present: Bool[Array, "B W N"],
) -> Float[Array, "B W N H E"]:
  """Each patch attends to the patches of its window."""
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  per_window = q.shape[2]
  mask = jnp.repeat(flat(present)[:, None], per_window, axis=1)
  return attention.full(flat(q), flat(k), flat(v), mask).reshape(q.shape)


def attend_in_pictures(
  q: Float[Array, "B W N H E"],
  k: Float[Array, "B W N H E"],
  v: Float[Array, "B W N H E"],
  present: Bool[Array, "B W N"],
  frame: Int[Array, "B W"],
) -> Float[Array, "B W N H E"]:
  """Each patch attends to the patches of the same `frame` of its row."""
  flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
  k, v = flat(k), flat(v)

  @jax.checkpoint  # The logits of one layer would fill the memory.
  def of_window(one):
    q, number = one
    mask = present & (frame == number[:, None])[..., None]
    mask = jnp.repeat(flat(mask)[:, None], q.shape[1], axis=1)
    return attention.full(q, k, v, mask)

  windows = (jnp.moveaxis(q, 1, 0), frame.T)
  out = jax.lax.map(of_window, windows, batch_size=WINDOWS_AT_A_TIME)
  return jnp.moveaxis(out, 0, 1)


class Tubelets(nn.Module):
  """Patches of `frames` frames to vectors: a convolution that never overlaps.

  A patch that comes with one frame is a still picture: shown `frames` times,
  it meets the sum of the kernel over its frames.
  """

  config: QwenVisionConfig
  param_dtype: str

  @nn.compact
  def __call__(
    self, x: Float[Array, "B W N frames p p channels"]
  ) -> Float[Array, "B W N D"]:
    c = self.config
    shape = (c.frames, c.patch_size, c.patch_size, c.channels)
    initializer = nn.initializers.normal(np.prod(shape) ** -0.5)
    kernel = self.param(
      "kernel", initializer, (*shape, c.width), jnp.dtype(self.param_dtype)
    )
    if x.shape[3] == 1:
      kernel = kernel.sum(axis=0, keepdims=True)
    return jnp.einsum("bwntpqc,tpqcd->bwnd", x, kernel.astype(x.dtype))


class Attention(nn.Module):
  """Bidirectional, fused qkv with biases, turned by row and column."""

  config: QwenVisionConfig
  param_dtype: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B W N D"],
    in_full: Bool[Array, ""],
    place: Int[Array, "B W N 2"],
    frame: Int[Array, "B W"],
  ) -> Float[Array, "B W N D"]:
    c, dtype = self.config, self.param_dtype
    heads = (c.heads, c.head_dim)
    qkv = Einsum(
      "bwnd,dche->bwnche", (c.width, 3, *heads), (3, *heads), dtype, name="qkv"
    )(x)
    q, k, v = jnp.moveaxis(qkv, 3, 0)
    flat = lambda y: y.reshape(y.shape[0], -1, *y.shape[3:])
    turn = lambda y: rope.rotate_by_place(
      flat(y), flat(place), theta=1e4
    ).reshape(y.shape)
    present = place[..., 0] >= 0
    out = jax.lax.cond(
      in_full,
      lambda q, k, v: attend_in_pictures(q, k, v, present, frame),
      lambda q, k, v: attend_in_windows(q, k, v, present),
      *(turn(q), turn(k), v),
    )
    return Einsum(
      "bwnhe,hed->bwnd", (*heads, c.width), (c.width,), dtype, name="out"
    )(out)


class Block(nn.Module):
  """Pre-norm attention and SwiGLU, all linear maps with biases."""

  config: QwenVisionConfig
  param_dtype: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B W N D"],
    in_full: Bool[Array, ""],
    place: Int[Array, "B W N 2"],
    frame: Int[Array, "B W"],
  ) -> tuple[Float[Array, "B W N D"], None]:
    c, dtype = self.config, self.param_dtype
    norm = lambda name, y: RMSNorm(c.norm_eps, dtype, name=name)(y)
    linear = lambda name, y, inner, outer: Einsum(
      "bwni,io->bwno", (inner, outer), (outer,), dtype, name=name
    )(y)
    y = norm("norm1", x)
    x = x + Attention(c, dtype, name="attention")(y, in_full, place, frame)
    y = norm("norm2", x)
    gate, up = (linear(name, y, c.width, c.mlp) for name in ("gate", "up"))
    x = x + linear("down", jax.nn.silu(gate) * up, c.mlp, c.width)
    return constrain(x, "batch", None, None, None), None


class QwenViT(nn.Module):
  """Windows of patches to patch features. The norm is the merger's."""

  config: ModelConfig

  @nn.compact
  def __call__(self, images: Patches) -> Float[Array, "B W N D"]:
    c, dtype = self.config.vision, self.config.param_dtype
    x = normalize(images.pixels, jnp.dtype(self.config.dtype))
    x = Tubelets(c, dtype, name="tubelet")(x)
    policy = getattr(jax.checkpoint_policies, self.config.remat)
    blocks = nn.scan(
      nn.remat(Block, prevent_cse=False, policy=policy),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast, nn.broadcast),
      length=c.layers,
    )
    in_full = jnp.isin(jnp.arange(c.layers), jnp.array(c.full_layers))
    place, frame = images.place, images.frame
    x, _ = blocks(c, dtype, name="layers")(x, in_full, place, frame)
    return x


class Merger(nn.Module):
  """Norm, shuffle^2 neighbours side by side, two linear maps."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self, x: Float[Array, "B W N D"]
  ) -> Float[Array, "B merged width"]:
    c, dtype = self.config, self.config.param_dtype
    inner, outer = c.shuffle**2 * c.vision.width, c.decoder.width
    x = RMSNorm(c.vision.norm_eps, dtype, name="norm")(x)
    x = x.reshape(x.shape[0], -1, inner)
    linear = lambda name, x, width: Einsum(
      "bni,io->bno", (inner, width), (width,), dtype, name=name
    )(x)
    x = jax.nn.gelu(linear("up", x, inner), approximate=False)
    return linear("down", x, outer)


def encode(
  config: ModelConfig, params: dict, images: Patches
) -> Float[Array, "B M D"]:
  """Image tokens of each row, in the order of the prompt.

  Args:
    config: with a `QwenVisionConfig`.
    params: with `vision` and `projector`.
    images: the pictures; the shuffle^2 patches of a token lie side by side.
  """
  x = QwenViT(config).apply({"params": params["vision"]}, images)
  x = Merger(config).apply({"params": params["projector"]}, x)
  return jnp.take_along_axis(x, images.order[..., None], axis=1)
