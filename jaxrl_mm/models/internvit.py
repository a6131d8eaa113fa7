"""InternViT, the vision tower of InternVL and Skywork R1V
(https://arxiv.org/abs/2312.14238), and the pixel shuffle behind it."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from jaxrl_mm.models import attention
from jaxrl_mm.models.config import ModelConfig, VisionConfig
from jaxrl_mm.models.layers import Einsum, LayerNorm, RMSNorm
from jaxrl_mm.sharding import constrain

# ImageNet statistics of the RGB channels, which InternViT was trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize(
  images: UInt8[Array, "N height width 3"], dtype: jnp.dtype
) -> Float[Array, "N height width 3"]:
  """Bytes to standardised colours, on device: pixels travel as bytes."""
  scaled = images.astype(jnp.float32) / 255
  return ((scaled - jnp.array(MEAN)) / jnp.array(STD)).astype(dtype)


def pixel_shuffle(
  x: Float[Array, "N side side D"], factor: int
) -> Float[Array, "N small small wide"]:
  """out[n, i, j, (di * f + dj) * D + d] = x[n, f * i + di, f * j + dj, d].

  The "v2" order of InternVL; f squared patches become one token.
  """
  n, side, _, width = x.shape
  small = side // factor
  x = x.reshape(n, small, factor, small, factor, width)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(n, small, small, factor * factor * width)


def _norm(config: VisionConfig, param_dtype: str, name: str) -> nn.Module:
  """The tower's own kind of norm."""
  kind = {"rms": RMSNorm, "layer": LayerNorm}[config.norm]
  return kind(config.norm_eps, param_dtype, name=name)


class Attention(nn.Module):
  """Bidirectional, fused qkv; q and k may be normed over all heads at once."""

  config: VisionConfig
  param_dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "N M D"]) -> Float[Array, "N M D"]:
    c, dtype = self.config, self.param_dtype
    heads = (c.heads, c.head_dim)
    bias = (3, *heads) if c.qkv_bias else ()
    qkv = Einsum(
      "nmd,dche->nmche", (c.width, 3, *heads), bias, dtype, name="qkv"
    )(x)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    norm = lambda name, y: RMSNorm(c.norm_eps, dtype, name=name)(
      y.reshape(x.shape)
    ).reshape(y.shape)
    if c.qk_norm:
      q, k = norm("q_norm", q), norm("k_norm", k)
    out = attention.full(q, k, v)
    return Einsum(
      "nmhe,hed->nmd", (*heads, c.width), (c.width,), dtype, name="out"
    )(out)


class Block(nn.Module):
  """x += ls1 * attention(norm1(x)); x += ls2 * mlp(norm2(x))."""

  config: VisionConfig
  param_dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "N M D"], _) -> tuple[Array, None]:
    c, dtype = self.config, self.param_dtype
    scale = lambda name: self.param(
      name,
      nn.initializers.constant(c.layer_scale),
      (c.width,),
      jnp.dtype(dtype),
    ).astype(x.dtype)
    norm = lambda name, y: _norm(c, dtype, name)(y)
    y = Attention(c, dtype, name="attention")(norm("norm1", x))
    x = x + scale("ls1") * y
    y = Einsum("nmd,df->nmf", (c.width, c.mlp), (c.mlp,), dtype, name="up")(
      norm("norm2", x)
    )
    y = Einsum("nmf,fd->nmd", (c.mlp, c.width), (c.width,), dtype, name="down")(
      jax.nn.gelu(y, approximate=False)
    )
    return constrain(x + scale("ls2") * y, "batch", None, None), None


class InternViT(nn.Module):
  """Tiles to patch features. There is no norm after the last block."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self, images: UInt8[Array, "N height width channels"]
  ) -> Float[Array, "N side side D"]:
    c, dtype = self.config.vision, self.config.param_dtype
    x = normalize(images, jnp.dtype(self.config.dtype))
    patch = (c.patch_size, c.patch_size, c.channels)
    x = x.reshape(-1, c.side, patch[0], c.side, patch[1], c.channels)
    x = Einsum(
      "nipjqc,pqcd->nijd", (*patch, c.width), (c.width,), dtype, name="patch"
    )(x)
    x = x.reshape(x.shape[0], -1, c.width)
    small = nn.initializers.normal(0.02)
    token = self.param("class", small, (1, 1, c.width), jnp.dtype(dtype))
    position = self.param(
      "position", small, (1, 1 + c.side**2, c.width), jnp.dtype(dtype)
    )
    token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, c.width))
    x = jnp.concatenate([token, x], axis=1) + position.astype(x.dtype)
    policy = getattr(jax.checkpoint_policies, self.config.remat)
    blocks = nn.scan(
      nn.remat(Block, prevent_cse=False, policy=policy),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=c.layers,
    )
    x, _ = blocks(c, dtype, name="layers")(x, None)
    return x[:, 1:].reshape(-1, c.side, c.side, c.width)


class Projector(nn.Module):
  """`mlp1`: pixel shuffle, norm, two linear maps into the decoder's width."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self, x: Float[Array, "N side side D"]
  ) -> Float[Array, "N K width"]:
    dtype, width = self.config.param_dtype, self.config.decoder.width
    x = pixel_shuffle(x, self.config.shuffle)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    x = LayerNorm(1e-5, dtype, name="norm")(x)
    x = Einsum("nkc,cd->nkd", (x.shape[-1], width), (width,), dtype, name="up")(
      x
    )
    x = jax.nn.gelu(x, approximate=False)
    return Einsum("nkc,cd->nkd", (width, width), (width,), dtype, name="down")(
      x
    )
