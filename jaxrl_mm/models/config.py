"""Sizes of the models, as frozen dataclasses, and the named ones."""

import dataclasses

from jaxrl_mm.errors import InputError


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """InternViT: a plain vision transformer over square tiles."""

  layers: int
  width: int
  heads: int
  mlp: int
  image_size: int
  patch_size: int
  channels: int = 3
  norm_eps: float = 1e-6
  layer_scale: float = 0.1

  @property
  def side(self) -> int:
    """Patches along one side of a tile."""
    return self.image_size // self.patch_size

  @property
  def head_dim(self) -> int:
    return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Qwen2: grouped-query attention with biased q, k, v, rotary, SwiGLU."""

  layers: int
  width: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  vocab: int
  tied: bool = False
  rope_theta: float = 1e6
  norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A vision tower, an MLP projector and a decoder.

  Attributes:
    shuffle: a shuffle x shuffle square of patches becomes one image token.
    dtype: of activations; norms, softmax and log-probs are float32 anyway.
    param_dtype: of weights; in bfloat16 most updates of a small learning rate
      round to nothing.
    remat: what the backward pass may keep of each layer, a name of
      `jax.checkpoint_policies`; "everything_saveable" recomputes nothing.
  """

  vision: VisionConfig
  decoder: DecoderConfig
  shuffle: int = 2
  dtype: str = "bfloat16"
  param_dtype: str = "float32"
  remat: str = "nothing_saveable"

  def __post_init__(self):
    for name, total, part in (
      ("vision.image_size", self.vision.image_size, self.vision.patch_size),
      ("vision.width", self.vision.width, self.vision.heads),
      ("patches along a tile", self.vision.side, self.shuffle),
      ("decoder.heads", self.decoder.heads, self.decoder.kv_heads),
    ):
      if total % part:
        raise InputError(
          f"config.model: {name} = {total} is not a multiple of {part}"
        )

  @property
  def tokens_per_tile(self) -> int:
    """Image tokens one tile becomes."""
    return (self.vision.side // self.shuffle) ** 2


def digits(vocab: int = 64) -> ModelConfig:
  """The laptop demo: the parts of R1V2, small enough for two CPU cores."""
  return ModelConfig(
    vision=VisionConfig(
      layers=2,
      width=64,
      heads=2,
      mlp=128,
      image_size=8,
      patch_size=4,
      layer_scale=1.0,
    ),
    decoder=DecoderConfig(
      layers=2,
      width=64,
      heads=4,
      kv_heads=2,
      head_dim=16,
      mlp=128,
      vocab=vocab,
      rope_theta=1e4,
    ),
    dtype="float32",
  )


def r1v2_38b() -> ModelConfig:
  """Skywork R1V2-38B: InternViT-6B-448px-V2.5, mlp1, QwQ-32B."""
  return ModelConfig(
    vision=VisionConfig(
      layers=45,
      width=3200,
      heads=25,
      mlp=12800,
      image_size=448,
      patch_size=14,
    ),
    decoder=DecoderConfig(
      layers=64,
      width=5120,
      heads=40,
      kv_heads=8,
      head_dim=128,
      mlp=27648,
      vocab=152064,
      norm_eps=1e-5,
    ),
  )
