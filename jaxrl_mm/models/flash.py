"""Attention that never writes the logits, on platforms that have a kernel.

Whole sequences alone go through these. A decode step stays with
`attention.cached` on every platform: paged kernels, such as the ragged paged
attention of TPUs, read the cache of every row, prompt included, and here the
rows of a group share the prompt's. With 8 samples a prompt and 1,200 of 2,048
tokens in it, they would read 2.1 times the bytes at the end of the answers and
2.8 times half way there.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  BlockSizes,
  CausalMask,
  MultiHeadMask,
  SegmentIds,
  make_splash_mha_single_device,
)
from jaxtyping import Array, Bool, Float

from jaxrl_mm import sharding

# Lanes of a TPU: splash attention cuts sequence and head width into these.
LANES = 128
# The kernel's own default is LANES, at which a TPU waits more than it computes;
# MaxText trains with this.
LARGEST_BLOCK = 512


def splash_fits(q: Float[Array, "B T H E"]) -> bool:
  """Whether splash attention is worth it, and possible on the mesh in use."""
  rows, length, _, width = q.shape
  whole = rows % sharding.batch_shards() == 0
  return whole and length >= LANES and width % LANES == 0


def splash(
  q: Float[Array, "B T H E"],
  k: Float[Array, "B T K E"],
  v: Float[Array, "B T K E"],
  real: Bool[Array, "B T"],
  *,
  interpret: bool = False,
) -> Float[Array, "B T H E"]:
  """Each real token attends to the real tokens up to itself, on a TPU.

  Neither pass writes the logits: kept for the backward one are q, k, v, the
  output and a float32 a query and head. What stands at the other places is
  finite. `interpret` runs the kernel step by step, on any platform.
  """
  local = partial(_splash, interpret)
  if not jax.sharding.get_abstract_mesh().empty:
    spec = sharding.RULES.spec
    of_q = spec("batch", None, "heads", None)
    of_k = spec("batch", None, "kv_heads", None)
    local = jax.shard_map(
      local,
      in_specs=(of_q, of_k, of_k, spec("batch", None)),
      out_specs=of_q,
      check_vma=False,
    )
  return local(q, k, v, real)


def _splash(interpret, q, k, v, real):
  """The rows and heads of one device, in whole blocks."""
  length, heads, width = q.shape[1:]
  room = -length % LANES
  fill = lambda x: jnp.pad(x, [(0, 0), (0, room)] + [(0, 0)] * (x.ndim - 2))
  q, k, v = (jnp.swapaxes(fill(x), 1, 2) for x in (q * width**-0.5, k, v))
  mask = MultiHeadMask([CausalMask((length + room,) * 2)] * heads)
  attend = make_splash_mha_single_device(
    mask, block_sizes=_blocks(length + room), interpret=interpret
  )
  # Padding attends to padding: the kernel divides by the sum of the weights.
  segment = fill(real).astype(jnp.int32)
  out = jax.vmap(attend)(q, k, v, SegmentIds(segment, segment))
  return jnp.swapaxes(out, 1, 2)[:, :length]


def _blocks(length: int) -> BlockSizes:
  """The largest blocks that divide the length, the same in all kernels."""
  size = next(n for n in range(LARGEST_BLOCK, 0, -LANES) if length % n == 0)
  names = (
    "block_q",
    "block_kv",
    "block_kv_compute",
    "block_q_dkv",
    "block_kv_dkv",
    "block_kv_dkv_compute",
    "block_q_dq",
    "block_kv_dq",
  )
  return BlockSizes(**dict.fromkeys(names, size))


def cudnn_fits(q: Float[Array, "B T H E"], k: Float[Array, "B S K E"]) -> bool:
  """Whether cuDNN takes these shapes, with a mask and in the backward pass."""
  narrow = q.dtype in (jnp.bfloat16, jnp.float16)
  width = q.shape[3] <= 128 and q.shape[3] % 8 == 0
  even = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
  return jax.default_backend() == "gpu" and narrow and width and even
