"""The decoder of Qwen2 (https://arxiv.org/abs/2412.15115), Qwen3 and Llama."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxrl_mm.models import attention, rope
from jaxrl_mm.models.attention import Cache, CacheMask
from jaxrl_mm.models.config import DecoderConfig, ModelConfig
from jaxrl_mm.models.layers import Einsum, RMSNorm
from jaxrl_mm.sharding import constrain

Mask = attention.Mask | CacheMask
Positions = Int[Array, "B T"] | Int[Array, "B T 3"]
KV = tuple[Float[Array, "*L B T K E"], Float[Array, "*L B T K E"]]


class Attention(nn.Module):
  """Grouped-query attention; the output has no bias."""

  config: DecoderConfig
  param_dtype: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    positions: Positions,
    mask: Mask,
    cache: Cache | None,
  ) -> tuple[Float[Array, "B T D"], KV]:
    c, dtype = self.config, self.param_dtype
    project = lambda name, heads: Einsum(
      "btd,dhe->bthe",
      (c.width, heads, c.head_dim),
      (heads, c.head_dim) if c.qkv_bias else (),
      dtype,
      name=name,
    )(x)
    q = project("q", c.heads)
    k = project("k", c.kv_heads)
    v = project("v", c.kv_heads)
    if c.qk_norm:
      q = RMSNorm(c.norm_eps, dtype, name="q_norm")(q)
      k = RMSNorm(c.norm_eps, dtype, name="k_norm")(k)
    turn = lambda y: rope.rotate(
      y, positions, theta=c.rope_theta, sections=c.rope_sections
    )
    q, k = turn(q), turn(k)
    if cache is None:
      # Where tokens are cut over devices, queries stay and keys are gathered.
      q = constrain(q, "batch", "length", "heads", None)
      whole = lambda y: constrain(y, "batch", None, "kv_heads", None)
      out = attention.full(q, whole(k), whole(v), mask)
    else:
      out = attention.cached(q, k, v, cache, mask)
    shape = (c.heads, c.head_dim, c.width)
    out = Einsum("bthe,hed->btd", shape, (), dtype, name="out")(out)
    return out, (k, v)


class Block(nn.Module):
  """Pre-norm attention and SwiGLU. Returns the new keys and values too."""

  config: DecoderConfig
  param_dtype: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    positions: Positions,
    mask: Mask,
    cache: Cache | None,
  ) -> tuple[Float[Array, "B T D"], KV]:
    c, dtype = self.config, self.param_dtype
    norm = lambda name, y: RMSNorm(c.norm_eps, dtype, name=name)(y)
    y, kv = Attention(c, dtype, name="attention")(
      norm("norm1", x), positions, mask, cache
    )
    x = constrain(x + y, "batch", "length", None)
    y = norm("norm2", x)
    wide = lambda name: Einsum(
      "btd,df->btf", (c.width, c.mlp), (), dtype, name=name
    )(y)
    y = jax.nn.silu(wide("gate")) * wide("up")
    y = constrain(y, "batch", "length", "mlp")
    y = Einsum("btf,fd->btd", (c.mlp, c.width), (), dtype, name="down")(y)
    return constrain(x + y, "batch", "length", None), kv


class Decoder(nn.Module):
  """Embeddings to final hidden states, layers scanned so they compile once."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    positions: Positions,
    mask: Mask,
    cache: Cache | None = None,
  ) -> tuple[Float[Array, "B T D"], KV]:
    """Runs all layers.

    Args:
      x: token embeddings, image features already in place.
      positions: rotary positions, of one axis or three.
      mask: see `attention.full`; with a cache, what of it may be seen.
      cache: prompt and past of the rows (then T is 1), or None.

    Returns:
      Normed hidden states, and the keys and values of these T tokens,
      [L, B, T, K, E] each.
    """
    c, dtype = self.config.decoder, self.config.param_dtype
    policy = getattr(jax.checkpoint_policies, self.config.remat)
    blocks = nn.scan(
      nn.remat(Block, prevent_cse=False, policy=policy),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, nn.broadcast, 0),
      length=c.layers,
    )
    x, kv = blocks(c, dtype, name="layers")(x, positions, mask, cache)
    return RMSNorm(c.norm_eps, dtype, name="norm")(x), kv


class Embedder(nn.Module):
  """Input embeddings `table` and output embeddings `head`, [V, D] each."""

  config: ModelConfig

  @nn.compact
  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    c = self.config.decoder
    shape, dtype = (c.vocab, c.width), jnp.dtype(self.config.param_dtype)
    initializer = nn.initializers.normal(c.width**-0.5)
    table = self.param("table", initializer, shape, dtype)
    if not c.tied:
      self.param("head", initializer, shape, dtype)
    return table[tokens].astype(jnp.dtype(self.config.dtype))
