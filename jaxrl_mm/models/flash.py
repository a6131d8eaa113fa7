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
from jaxtyping import Array, Float, Int

from jaxrl_mm import sharding

# Lanes of a TPU: splash attention cuts sequence and head width into these.
LANES = 128
# The kernel's own default is LANES, at which a TPU waits more than it computes;
# MaxText trains with this.
LARGEST_BLOCK = 512


def splash_fits(q: Float[Array, "B T H E"], k: Float[Array, "B S K E"]) -> bool:
  """Whether splash attention is worth it, and possible on the mesh in use."""
  rows, length, _, width = q.shape
  whole = rows % sharding.batch_shards() == 0
  long = LANES <= length <= k.shape[1]
  return whole and long and width % LANES == 0


def splash(
  q: Float[Array, "B T H E"],
  k: Float[Array, "B S K E"],
  v: Float[Array, "B S K E"],
  of_q: Int[Array, "B T"],
  of_k: Int[Array, "B S"],
  *,
  interpret: bool = False,
) -> Float[Array, "B T H E"]:
  """Each query attends to the keys of its segment up to itself, on a TPU.

  The queries are the last T of the S tokens: all of them, or answers whose
  prompt was run before. Neither pass writes the logits: kept for the backward
  one are q, k, v, the output and a float32 a query and head.

  Args:
    q, k, v: S >= T.
    of_q, of_k: the segment of each token, such as the number of an answer in a
      packed row. Padding needs a number too, say 0: every query has to find a
      key, for the kernel divides by the sum of the weights.
    interpret: runs the kernel step by step, on any platform.
  """
  local = partial(_splash, interpret)
  if not jax.sharding.get_abstract_mesh().empty:
    spec = sharding.RULES.spec
    heads = spec("batch", None, "heads", None)
    kv_heads = spec("batch", None, "kv_heads", None)
    tokens = spec("batch", None)
    local = jax.shard_map(
      local,
      in_specs=(heads, kv_heads, kv_heads, tokens, tokens),
      out_specs=heads,
      check_vma=False,
    )
  return local(q, k, v, of_q, of_k)


def _splash(interpret, q, k, v, of_q, of_k):
  """The rows and heads of one device, in whole blocks."""
  length, heads, width = q.shape[1:]
  offset = k.shape[1] - length
  q, k, v = (_fill(x, "constant") for x in (q * width**-0.5, k, v))
  # Filled queries find what the last one does; none else sees filled keys.
  of_q, of_k = (_fill(x, "edge") for x in (of_q, of_k))
  causal = CausalMask((q.shape[1], k.shape[1]), offset=offset)
  attend = make_splash_mha_single_device(
    MultiHeadMask([causal] * heads),
    block_sizes=_blocks(*causal.shape),
    interpret=interpret,
  )
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  out = jax.vmap(attend)(q, k, v, SegmentIds(of_q, of_k))
  return jnp.swapaxes(out, 1, 2)[:, :length]


def _fill(x, mode):
  """Tokens to whole blocks."""
  room = -x.shape[1] % LANES
  return jnp.pad(x, [(0, 0), (0, room)] + [(0, 0)] * (x.ndim - 2), mode=mode)


def _blocks(queries: int, keys: int) -> BlockSizes:
  """The largest blocks that divide the lengths, the same in all kernels."""
  q, kv = map(_block, (queries, keys))
  return BlockSizes(
    block_q=q,
    block_kv=kv,
    block_kv_compute=kv,
    block_q_dkv=q,
    block_kv_dkv=kv,
    block_kv_dkv_compute=kv,
    block_q_dq=q,
    block_kv_dq=kv,
  )


def _block(length):
  return next(n for n in range(LARGEST_BLOCK, 0, -LANES) if length % n == 0)


def cudnn_fits(q: Float[Array, "B T H E"], k: Float[Array, "B S K E"]) -> bool:
  """Whether cuDNN takes these shapes, with a mask and in the backward pass."""
  narrow = q.dtype in (jnp.bfloat16, jnp.float16)
  width = q.shape[3] <= 128 and q.shape[3] % 8 == 0
  even = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
  return jax.default_backend() == "gpu" and narrow and width and even
