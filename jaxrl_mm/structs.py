"""The arrays that travel between the layers. No logic.

Letters for shapes, everywhere the same: B rows, P prompts, G samples per
prompt, T completion tokens, S prompt tokens, N image tiles a row, D width,
H query heads, K key/value heads, E head width, F mlp width, V vocabulary,
L layers.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, UInt8

Metrics = dict[str, Array]
# A constant. Where types are checked, an int is no float.
Number = float | int


class Patches(NamedTuple):
  """Pictures of any size as windows of patches, for Qwen2.5-VL towers.

  W windows a row, each a square of K patches, the m patches that merge into
  one image token side by side. Windows at the edge of a picture and unused
  windows hold patches that are not there.

  Attributes:
    pixels: [B, W, K, frames, height, width, channels] of each patch; one frame
      where there are only still pictures (shown to the tower twice).
    place: [B, W, K, 2] row and column of a patch in its picture, -1 where
      there is no patch.
    frame: [B, W] windows with the same number show the same picture at the
      same time.
    order: [B, M] which merged patch (window by window) is the i-th image
      token of the row.
  """

  pixels: UInt8[Array, "*B W K frames height width channels"]
  place: Int[Array, "*B W K 2"]
  frame: Int[Array, "*B W"]
  order: Int[Array, "*B M"]


class Prompts(NamedTuple):
  """Prompts, left-padded so that generation starts at one column for all.

  Attributes:
    tokens: [B, S] token ids; image placeholders stand in for image features.
    mask: [B, S] true on real tokens.
    images: [B, N, height, width, channels] tiles in the order of their
      placeholders; unused tiles are zero and no placeholder points at them.
      Or the `Patches` of the pictures. None where the model sees no pictures.
    group: [B] rows with the same number hold the same prompt.
    positions: [B, S, 3] rotary positions along time, height and width, for
      models that place image tokens in their plane; None counts the tokens.
  """

  tokens: Int[Array, "B S"]
  mask: Bool[Array, "B S"]
  images: UInt8[Array, "B N height width channels"] | Patches | None
  group: Int[Array, " B"]
  positions: Int[Array, "B S 3"] | None = None


class Demonstrations(NamedTuple):
  """Prompts with the completion to imitate, right-padded.

  Attributes:
    prompts: the prompts, leading axis B.
    tokens: [B, T] completion ids, the end token included.
    mask: [B, T] true on the tokens to learn.
  """

  prompts: Prompts
  tokens: Int[Array, "B T"]
  mask: Bool[Array, "B T"]


class Pairs(NamedTuple):
  """Prompts with a better and a worse completion, right-padded.

  Attributes:
    prompts: the prompts, leading axis B.
    tokens: [B, 2, T] completion ids, the better one first.
    mask: [B, 2, T] true on their tokens.
    reference_logp: [B, 2] log-prob of each whole completion under the
      reference policy.
  """

  prompts: Prompts
  tokens: Int[Array, "B 2 T"]
  mask: Bool[Array, "B 2 T"]
  reference_logp: Float[Array, "B 2"]


class Completions(NamedTuple):
  """What the sampler draws.

  Attributes:
    tokens: [B, T] ids up to and including the end token, then padding.
    mask: [B, T] true on drawn tokens.
    logp: [B, T] log-probability of each drawn token, zero on padding.
  """

  tokens: Int[Array, "B T"]
  mask: Bool[Array, "B T"]
  logp: Float[Array, "B T"]


class Trajectories(NamedTuple):
  """Rollouts with their rewards: what the algorithms transform.

  Every leaf has the leading axis B, so that a row can be kept, moved or
  replayed as a whole, whatever it carries.

  Attributes:
    tokens: [B, T] completion ids.
    mask: [B, T] true on the tokens that are trained.
    logp: [B, T] log-probs under the policy that drew the tokens.
    group: [B] rows with the same number answer the same prompt.
    rewards: [B] total reward.
    verifiable: [B] the part of the reward that rules decided, never a
      learned score; equal over a group means nothing can be learned from it.
    advantages: [B] or [B, T]; starts as zeros, the algorithms fill it and
      then change it step by step.
    prompts: whatever the model needs to score the rows again; opaque here.
    reference_logp: [B, T] log-probs under a frozen reference policy, or None.
    trainer_logp: [B, T] log-probs that the trainer gives the tokens under the
      weights that drew them, where they differ from the sampler's `logp`; the
      ratio is then taken to these, and the difference is weighed. Or None.
    values: [B, T] what a critic expects from each token on, or None.
    returns: [B, T] what the critic should have expected, or None.
    terms: [B] each part of the reward by name, for the log, or None.
  """

  tokens: Int[Array, "B T"]
  mask: Bool[Array, "B T"]
  logp: Float[Array, "B T"]
  group: Int[Array, " B"]
  rewards: Float[Array, " B"]
  verifiable: Float[Array, " B"]
  advantages: Float[Array, "B ..."]
  prompts: Any = None
  reference_logp: Float[Array, "B T"] | None = None
  trainer_logp: Float[Array, "B T"] | None = None
  values: Float[Array, "B T"] | None = None
  returns: Float[Array, "B T"] | None = None
  terms: dict[str, Float[Array, " B"]] | None = None
