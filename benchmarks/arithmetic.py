"""Operations and bytes of a program by hand, for the whole machine.

A product of [n, a] and [a, b] is 2 n a b operations; norms, softmax and rotary
positions are left out. Bytes are what must come from memory: weights, which
each batch shard reads for itself in the dtype of the activations, what is kept
between the passes, and caches. The scores of attention never leave the chip.
"""

from typing import NamedTuple

from jaxrl_mm.data.images import Tiles
from jaxrl_mm.data.patches import Patching
from jaxrl_mm.models.config import (
  DecoderConfig,
  ModelConfig,
  QwenVisionConfig,
  VisionConfig,
)


class Work(NamedTuple):
  """Operations, and bytes of HBM moved."""

  flops: float = 0.0
  bytes: float = 0.0

  def __add__(self, other: "Work") -> "Work":
    return Work(self.flops + other.flops, self.bytes + other.bytes)

  def __mul__(self, times: float) -> "Work":
    return Work(self.flops * times, self.bytes * times)


def decoder_weights(d: DecoderConfig) -> int:
  """Weights of the layers' products."""
  attention = d.width * d.head_dim * (2 * d.heads + 2 * d.kv_heads)
  return d.layers * (attention + 3 * d.width * d.mlp)


def decoder_pass(
  m: ModelConfig, rows: int, length: int, reads: int, shared: int = 0
) -> Work:
  """One pass over whole sequences; each token sees those up to itself.

  Args:
    m: the model.
    rows, length: of the sequences.
    reads: of the weights: batch shards * micro-batches.
    shared: tokens, of all rows, that run with those of another row.
  """
  d, tokens = m.decoder, rows * length - shared
  pairs = rows * length * (length + 1) / 2
  flops = 2 * decoder_weights(d) * tokens
  flops += 4 * d.layers * d.heads * d.head_dim * pairs
  states = 2 * tokens * d.layers * d.width * width(m.dtype)
  weights = reads * decoder_weights(d) * width(m.dtype)
  return Work(flops, states + weights)


def head(m: ModelConfig, tokens: int, reads: int) -> Work:
  """Scores of the whole vocabulary for so many tokens."""
  size = m.decoder.vocab * m.decoder.width
  return Work(2.0 * size * tokens, float(reads * size * width(m.dtype)))


def decode_token(
  m: ModelConfig, rows: int, prompts: int, prompt: int, own: int, reads: int
) -> Work:
  """One token of every row.

  Args:
    m: the model.
    rows: that are decoded at once.
    prompts: whose caches are there, each read once for all of its rows.
    prompt: tokens of a prompt.
    own: tokens of a row that are attended beside its prompt.
    reads: of the weights: batch shards.
  """
  d = m.decoder
  seen = 4 * d.layers * d.heads * d.head_dim * (prompt + own)
  entry = 2 * d.layers * d.kv_heads * d.head_dim * width(m.dtype)
  cache = (prompts * prompt + rows * own) * entry
  weights = reads * decoder_weights(d) * width(m.dtype)
  flops = rows * (2 * decoder_weights(d) + seen)
  return Work(float(flops), float(weights + cache)) + head(m, rows, reads)


def vision_pass(
  m: ModelConfig, pictures: Tiles | Patching | None, prompts: int, reads: int
) -> Work:
  """Tower and projector over the pictures of so many prompts."""
  if pictures is None:
    return Work()
  v, d = m.vision, m.decoder
  merged = m.shuffle**2 * v.width
  if isinstance(v, VisionConfig):
    tokens = (v.side**2 + 1) * pictures.room
    flops, size = _tiles(v, pictures.room)
    out = pictures.room * (v.side // m.shuffle) ** 2
    projector = d.width * (merged + d.width)
  else:
    tokens = pictures.windows * v.window**2
    flops, size = _windows(v, pictures.windows)
    out = tokens // m.shuffle**2
    projector = merged * (merged + d.width)
  states = 2 * tokens * v.layers * v.width * width(m.dtype)
  return Work(
    prompts * (flops + 2.0 * out * projector),
    float(prompts * states + reads * (size + projector) * width(m.dtype)),
  )


def _tiles(v: VisionConfig, tiles: int) -> tuple[float, int]:
  """Operations and weights of InternViT."""
  size = v.layers * (4 * v.width**2 + 2 * v.width * v.mlp)
  length = v.side**2 + 1
  patch = v.patch_size**2 * v.channels * v.width
  flops = 2 * size * length + 4 * v.layers * v.width * length**2
  return float(tiles * (flops + 2 * patch * v.side**2)), size + patch


def _windows(v: QwenVisionConfig, windows: int) -> tuple[float, int]:
  """Operations and weights of the Qwen2.5-VL tower."""
  size = v.layers * (4 * v.width**2 + 3 * v.width * v.mlp)
  patch = v.frames * v.patch_size**2 * v.channels * v.width
  each, full = v.window**2, len(v.full_layers)
  tokens = windows * each
  seen = full * tokens + (v.layers - full) * each
  flops = 2 * (size + patch) * tokens + 4 * v.width * tokens * seen
  return float(flops), size + patch


def width(dtype: str) -> int:
  """Bytes of a number."""
  return {"float32": 4, "bfloat16": 2}[dtype]
