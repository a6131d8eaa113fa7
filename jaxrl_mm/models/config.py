"""Sizes of the models, as frozen dataclasses, and the named ones."""

import dataclasses

from jaxrl_mm.errors import InputError


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """InternViT: a plain vision transformer over square tiles.

  Attributes:
    norm: "rms" (the 6B tower) or "layer" (the 300M tower).
    qk_norm: queries and keys are normed over all heads at once.
    qkv_bias: queries, keys and values have biases.
    layer_scale: initial value of the scales of both branches.
  """

  layers: int
  width: int
  heads: int
  mlp: int
  image_size: int
  patch_size: int
  channels: int = 3
  norm_eps: float = 1e-6
  layer_scale: float = 0.1
  norm: str = "rms"
  qk_norm: bool = True
  qkv_bias: bool = False

  @property
  def side(self) -> int:
    """Patches along one side of a tile."""
    return self.image_size // self.patch_size

  @property
  def head_dim(self) -> int:
    return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
  """The Qwen2.5-VL tower: pictures of any size, windows of patches.

  Attributes:
    window: patches along one side of a window.
    full_layers: layers whose patches attend to their whole picture; in the
      others they attend to their window.
    frames: consecutive frames of a video that form one patch.
  """

  layers: int
  width: int
  heads: int
  mlp: int
  full_layers: tuple[int, ...]
  patch_size: int = 14
  window: int = 8
  frames: int = 2
  channels: int = 3
  norm_eps: float = 1e-6

  @property
  def head_dim(self) -> int:
    return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Qwen2, Qwen3, Llama: grouped-query attention, rotary, SwiGLU.

  Attributes:
    tied: input embeddings serve as output embeddings.
    qkv_bias: queries, keys and values have biases (Qwen2).
    qk_norm: queries and keys are normed head by head (Qwen3).
    rope_sections: rotary frequencies of time, height and width (Qwen2.5-VL);
      empty where positions have one axis.
  """

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
  qkv_bias: bool = True
  qk_norm: bool = False
  rope_sections: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A vision tower, an MLP projector and a decoder.

  Attributes:
    vision: None for a model of text alone.
    shuffle: a shuffle x shuffle square of patches becomes one image token.
    value_head: whether the model has a linear head that scores an answer.
    dtype: of activations; norms, softmax and log-probs are float32 anyway.
    param_dtype: of weights; in bfloat16 most updates of a small learning rate
      round to nothing.
    remat: what the backward pass may keep of each layer, a name of
      `jax.checkpoint_policies`; "everything_saveable" recomputes nothing.
  """

  vision: VisionConfig | QwenVisionConfig | None
  decoder: DecoderConfig
  shuffle: int = 2
  value_head: bool = False
  dtype: str = "bfloat16"
  param_dtype: str = "float32"
  remat: str = "nothing_saveable"

  def __post_init__(self):
    d, v = self.decoder, self.vision
    rules = [("decoder.heads", d.heads, d.kv_heads)]
    if v is not None:
      rules += [("vision.width", v.width, v.heads)]
    if isinstance(v, VisionConfig):
      if v.norm not in ("rms", "layer"):
        raise InputError(
          f"config.model.vision.norm is '{v.norm}'; known are rms, layer"
        )
      rules += [
        ("vision.image_size", v.image_size, v.patch_size),
        ("patches along a tile", v.side, self.shuffle),
      ]
    if isinstance(v, QwenVisionConfig):
      rules += [("vision.window", v.window, self.shuffle)]
    for name, total, part in rules:
      if total % part:
        raise InputError(
          f"config.model: {name} = {total} is not a multiple of {part}"
        )


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


def smollm2_135m() -> ModelConfig:
  """SmolLM2-135M (https://arxiv.org/abs/2502.02737): text alone."""
  decoder = DecoderConfig(
    layers=30,
    width=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    mlp=1536,
    vocab=49152,
    tied=True,
    rope_theta=1e5,
    norm_eps=1e-5,
    qkv_bias=False,
  )
  return ModelConfig(vision=None, decoder=decoder)


def internvl3_1b() -> ModelConfig:
  """InternVL3-1B: InternViT-300M-448px-V2.5, mlp1, Qwen2.5-0.5B
  (https://arxiv.org/abs/2504.10479)."""
  return ModelConfig(
    vision=VisionConfig(
      layers=24,
      width=1024,
      heads=16,
      mlp=4096,
      image_size=448,
      patch_size=14,
      norm="layer",
      qk_norm=False,
      qkv_bias=True,
    ),
    decoder=DecoderConfig(
      layers=24,
      width=896,
      heads=14,
      kv_heads=2,
      head_dim=64,
      mlp=4864,
      vocab=151674,
    ),
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


def qwen2_5_vl_3b() -> ModelConfig:
  """Qwen2.5-VL-3B (https://arxiv.org/abs/2502.13923)."""
  return _qwen2_5_vl(
    DecoderConfig(
      layers=36,
      width=2048,
      heads=16,
      kv_heads=2,
      head_dim=128,
      mlp=11008,
      vocab=151936,
      tied=True,
      rope_sections=(16, 24, 24),
    ),
    vision_mlp=3420,
  )


def qwen2_5_vl_7b() -> ModelConfig:
  """Qwen2.5-VL-7B, the base of R1-Reward and of Skywork-VL Reward."""
  return _qwen2_5_vl(
    DecoderConfig(
      layers=28,
      width=3584,
      heads=28,
      kv_heads=4,
      head_dim=128,
      mlp=18944,
      vocab=152064,
      rope_sections=(16, 24, 24),
    ),
    vision_mlp=3420,
  )


def qwen2_5_vl_32b() -> ModelConfig:
  """Qwen2.5-VL-32B."""
  return _qwen2_5_vl(
    DecoderConfig(
      layers=64,
      width=5120,
      heads=40,
      kv_heads=8,
      head_dim=128,
      mlp=27648,
      vocab=152064,
      rope_sections=(16, 24, 24),
    ),
    vision_mlp=3456,
  )


def qwen2_5_vl_72b() -> ModelConfig:
  """Qwen2.5-VL-72B."""
  return _qwen2_5_vl(
    DecoderConfig(
      layers=80,
      width=8192,
      heads=64,
      kv_heads=8,
      head_dim=128,
      mlp=29568,
      vocab=152064,
      rope_sections=(16, 24, 24),
    ),
    vision_mlp=3456,
  )


def _qwen2_5_vl(decoder: DecoderConfig, vision_mlp: int) -> ModelConfig:
  vision = QwenVisionConfig(
    layers=32,
    width=1280,
    heads=16,
    mlp=vision_mlp,
    full_layers=(7, 15, 23, 31),
  )
  return ModelConfig(vision=vision, decoder=decoder)
