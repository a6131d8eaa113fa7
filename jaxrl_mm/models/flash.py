"""Attention that never writes the logits, on platforms that have a kernel.

Whole sequences alone go through these. A decode step stays with
`attention.cached` on every platform: paged kernels, such as the ragged paged
attention of TPUs, read the cache of every row, prompt included, and here the
rows of a group share the prompt's. With 8 samples a prompt and 1,200 of 2,048
tokens in it, they would read 2.1 times the bytes at the end of the answers and
2.8 times half way there.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
  BlockSizes,
  CausalMask,
  MultiHeadMask,
  SegmentIds,
  make_splash_mha,
)
from jax.sharding import NamedSharding
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
    of_q, of_k: the segment of each token, 1 for what is real. Padding needs a
      number too, say 0: every query has to find a key, for the kernel divides
      by the sum of the weights.
    interpret: runs the kernel step by step, on any platform.
  """
  length, offset = q.shape[1], k.shape[1] - q.shape[1]
  shards = sharding.length_shards()
  pieces = 2 * shards if shards > 1 else 1
  q = _fill(q * q.shape[3] ** -0.5, pieces * LANES, "constant")
  k, v = (_fill(x, LANES, "constant") for x in (k, v))
  # Filled queries find what the last one does; none else sees filled keys.
  of_q = _fill(of_q, pieces * LANES, "edge")
  of_k = _fill(of_k, LANES, "edge")
  causal = CausalMask((q.shape[1], k.shape[1]), offset=offset)
  causal.q_sequence = _order(q.shape[1], shards)
  attend = make_splash_mha(
    MultiHeadMask([causal]),  # of all heads
    block_sizes=_blocks(q.shape[1] // pieces, k.shape[1]),
    head_shards=1,
    q_seq_shards=shards,
    interpret=interpret,
  )
  out = _over_mesh(attend)(attend, q, k, v, of_q, of_k)
  return out[:, :length]


def _fill(x, step, mode):
  """Tokens to a multiple of `step`."""
  room = -x.shape[1] % step
  return jnp.pad(x, [(0, 0), (0, room)] + [(0, 0)] * (x.ndim - 2), mode=mode)


def _over_mesh(attend):
  """`_attend`, each device its rows, its heads and its part of the queries."""
  mesh, spec = jax.sharding.get_abstract_mesh(), sharding.RULES.spec
  if mesh.empty:
    return _attend
  queries = spec("batch", "length", "heads", None)
  keys = spec("batch", None, "kv_heads", None)
  segments = spec("batch", "length"), spec("batch", None)
  blocks = NamedSharding(mesh, spec(None, "length"))
  return jax.shard_map(
    _attend,
    in_specs=(
      attend.manual_sharding_spec(blocks),
      queries,
      keys,
      keys,
      *segments,
    ),
    out_specs=queries,
    check_vma=False,
  )


def _attend(attend, q, k, v, of_q, of_k):
  """What one device does."""
  heads_first = lambda x: jnp.swapaxes(x, 1, 2)
  segments = SegmentIds(_exchange(of_q), of_k)
  q, k, v = map(heads_first, (_exchange(q), k, v))
  return _exchange(heads_first(jax.vmap(attend)(q, k, v, segments)))


def _exchange(x):
  """The second half of a device's tokens for that of the device opposite.

  The last tokens have the most keys. So exchanged, the first half of one
  device and the second of the other, all devices have equally many. Done
  twice, everything is back.
  """
  shards = sharding.length_shards()
  if shards == 1:
    return x
  first, second = jnp.split(x, 2, axis=1)
  opposite = [(i, shards - 1 - i) for i in range(shards)]
  second = jax.lax.ppermute(second, sharding.RULES.length, opposite)
  return jnp.concatenate([first, second], axis=1)


def _order(length: int, shards: int) -> np.ndarray:
  """Which tokens stand where after `_exchange`."""
  order = np.arange(length, dtype=np.int32).reshape(shards, 2, -1)
  order[:, 1] = order[::-1, 1].copy()
  return order.ravel()


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
