"""Policy-gradient losses on log-probs. All of them are to be minimised."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxrl_mm import masked
from jaxrl_mm.structs import Metrics, Number

Aggregate = Literal["sequence", "token"] | Number


def aggregate_tokens(
  per_token: Float[ArrayLike, "B T"], mask: ArrayLike, aggregate: Aggregate
) -> Float[Array, ""]:
  """One number from a loss per token.

  Args:
    per_token: [B, T].
    mask: [B, T] true where a token counts.
    aggregate: "sequence" averages each row over its tokens, then the rows
      (GRPO); "token" averages over all tokens of the batch (DAPO); a number c
      divides each row's sum by c, then averages the rows (Dr.GRPO with c the
      maximal length). A row without tokens counts nowhere, so padding a batch
      with empty rows changes nothing.
  """
  mask = jnp.asarray(mask, bool)
  if aggregate == "token":
    return masked.mean(per_token, mask)
  if aggregate == "sequence":
    rows = masked.mean(per_token, mask, axis=-1)
  else:
    rows = masked.total(per_token, mask, axis=-1) / aggregate
  return masked.mean(rows, jnp.any(mask, axis=-1))


def clipped_surrogate(
  logp: Float[ArrayLike, "B T"],
  old_logp: Float[ArrayLike, "B T"],
  advantages: Float[ArrayLike, "B *T"],
  mask: ArrayLike,
  *,
  clip_low: ArrayLike = 0.2,
  clip_high: ArrayLike = 0.2,
  log_ratio_bounds: tuple[ArrayLike, ArrayLike] | None = None,
  dual_clip: ArrayLike | None = None,
  weights: Float[ArrayLike, "B T"] | None = None,
  aggregate: Aggregate = "sequence",
) -> tuple[Float[Array, ""], Metrics]:
  """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logp - old).

  PPO (https://arxiv.org/abs/1707.06347, equation 7) and GRPO
  (https://arxiv.org/abs/2402.03300, equation 3 without its KL term).

  Args:
    logp: [B, T] log-probs under the policy being trained.
    old_logp: [B, T] log-probs under the policy that drew the tokens.
    advantages: [B] or [B, T].
    mask: [B, T] true where a token counts; what lies under the mask, even
      infinities, changes neither loss nor gradient.
    clip_low, clip_high: how far the ratio may fall and rise; unequal in DAPO
      (https://arxiv.org/abs/2503.14476).
    log_ratio_bounds: clips logp - old_logp before the exponential: the
      Pre-CLIP of StableReinforce (https://arxiv.org/abs/2505.02835) with
      (log 1e-3, log 1e3). The gradient is zero beyond the bounds. Without
      them a ratio can overflow to infinity, as in plain PPO.
    dual_clip: for negative advantages the loss is at most dual_clip * |A|
      (https://arxiv.org/abs/1912.09729, equation 5); above 1.
    weights: [B, T] constant factors on the terms of the tokens, such as
      `truncated_importance`.
    aggregate: see `aggregate_tokens`.

  Returns:
    The loss, and metrics: `clip_fraction`, share of tokens where the clipped
    term is the smaller; `ratio`, mean importance ratio; `approx_kl`, mean k3
    from the drawing policy.
  """
  mask, advantages = jnp.asarray(mask, bool), _by_token(advantages)
  log_ratio = _log_ratio(logp, old_logp, mask)
  if log_ratio_bounds is not None:
    log_ratio = _clip(log_ratio, *log_ratio_bounds)
  objective, metrics = _surrogate(
    log_ratio, advantages, mask, clip_low, clip_high
  )
  if dual_clip is not None:
    bounded = jnp.maximum(objective, dual_clip * advantages)
    objective = jnp.where(advantages < 0, bounded, objective)
  if weights is not None:
    objective = objective * weights
  return aggregate_tokens(-objective, mask, aggregate), metrics


def gspo(
  logp: Float[ArrayLike, "B T"],
  old_logp: Float[ArrayLike, "B T"],
  advantages: Float[ArrayLike, "B *T"],
  mask: ArrayLike,
  *,
  clip_low: ArrayLike = 3e-4,
  clip_high: ArrayLike = 4e-4,
  weights: Float[ArrayLike, "B T"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
  """-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A) with one ratio a row.

  s = exp(mean over the row's tokens of logp - old_logp): GSPO
  (https://arxiv.org/abs/2507.18071, equations 5 to 7). Advantages that differ
  between tokens give its GSPO-token (equations 13 and 14): s is then a
  constant times exp(logp - stop_gradient(logp)), which for equal advantages
  has the same value and gradient.

  Args:
    logp, old_logp, advantages, mask, weights: as in `clipped_surrogate`.
    clip_low, clip_high: section 5.1; hundreds of times narrower than for
      ratios of tokens, since the mean over tokens varies little.

  Returns:
    The mean over rows that hold tokens, and metrics as `clipped_surrogate`.
  """
  mask = jnp.asarray(mask, bool)
  log_ratio = _log_ratio(logp, old_logp, mask)
  row = masked.mean(log_ratio, mask, axis=-1)[:, None]
  # The value of the row's mean, the gradient of the token's own log-prob.
  log_ratio = jax.lax.stop_gradient(row - log_ratio) + log_ratio
  objective, metrics = _surrogate(
    log_ratio, _by_token(advantages), mask, clip_low, clip_high
  )
  if weights is not None:
    objective = objective * weights
  return aggregate_tokens(-objective, mask, "sequence"), metrics


def cispo(
  logp: Float[ArrayLike, "B T"],
  old_logp: Float[ArrayLike, "B T"],
  advantages: Float[ArrayLike, "B *T"],
  mask: ArrayLike,
  *,
  clip_low: ArrayLike = 1.0,
  clip_high: ArrayLike = 4.0,
  weights: Float[ArrayLike, "B T"] | None = None,
  aggregate: Aggregate = "token",
) -> tuple[Float[Array, ""], Metrics]:
  """-stop_gradient(clip(r, 1 - clip_low, 1 + clip_high)) A logp.

  CISPO of MiniMax-M1 (https://arxiv.org/abs/2506.13585, equations 4 and 5):
  the weight is clipped, no token loses its gradient.

  Args:
    logp, old_logp, advantages, mask, weights, aggregate: as in
      `clipped_surrogate`.
    clip_low: 1 is no lower bound, as in the paper.
    clip_high: the paper tunes it and gives no value; a ratio of at most 5 is
      within the range that https://arxiv.org/abs/2510.13786 found stable.

  Returns:
    The loss, and metrics: `clip_fraction`, share of tokens whose ratio lies
    outside the bounds; `ratio`; `approx_kl`.
  """
  mask = jnp.asarray(mask, bool)
  log_ratio = _log_ratio(logp, old_logp, mask)
  ratio = jnp.exp(jax.lax.stop_gradient(log_ratio))
  factor = _clip(ratio, 1 - clip_low, 1 + clip_high)
  outside = (factor != ratio).astype(ratio.dtype)
  if weights is not None:
    factor = factor * weights
  score = jnp.where(mask, masked.widen(logp), 0)
  per_token = -factor * _by_token(advantages) * score
  metrics = {"clip_fraction": masked.mean(outside, mask)}
  metrics |= _ratio_metrics(log_ratio, mask)
  return aggregate_tokens(per_token, mask, aggregate), metrics


def reinforce(
  logp: Float[ArrayLike, "B T"],
  advantages: Float[ArrayLike, "B *T"],
  mask: ArrayLike,
  *,
  weights: Float[ArrayLike, "B T"] | None = None,
  aggregate: Aggregate = "sequence",
) -> Float[Array, ""]:
  """-A logp: REINFORCE (Williams, 1992,
  https://doi.org/10.1007/BF00992696), for tokens of the current policy.

  Args:
    logp, advantages, mask, weights: as in `clipped_surrogate`.
    aggregate: see `aggregate_tokens`; 1 is the log-prob of whole rows.
  """
  mask = jnp.asarray(mask, bool)
  score = jnp.where(mask, masked.widen(logp), 0)
  per_token = -_by_token(advantages) * score
  if weights is not None:
    per_token = per_token * weights
  return aggregate_tokens(per_token, mask, aggregate)


def truncated_importance(
  logp: Float[ArrayLike, "B T"],
  sampler_logp: Float[ArrayLike, "B T"],
  mask: ArrayLike,
  *,
  cap: ArrayLike = 2.0,
) -> Float[Array, "B T"]:
  """min(exp(logp - sampler_logp), cap), a constant to the gradient.

  Corrects for a sampler whose log-probs differ from the trainer's for the
  same weights: other kernels, other precision
  (https://fengyao.notion.site/off-policy-rl).

  Args:
    logp: [B, T] log-probs that the trainer gives the drawn tokens, under the
      weights that drew them.
    sampler_logp: [B, T] log-probs that the sampler recorded.
    mask: [B, T] true where a token counts; the others get the weight 1.
    cap: the largest weight.
  """
  log_ratio = _log_ratio(logp, sampler_logp, jnp.asarray(mask, bool))
  return jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_ratio), cap))


def entropy(logits: Float[ArrayLike, "*shape V"]) -> Float[Array, "*shape"]:
  """-sum p log p of softmax(logits), in nats.

  `masked.token_logp` gives the same for a large vocabulary without holding
  all logits. To reward entropy, subtract `weight * aggregate_tokens(entropy,
  mask, aggregate)` from a loss (https://arxiv.org/abs/1602.01783, section 4).
  A logit of -inf is a choice that cannot be made and adds zero.
  """
  log_probs = jax.nn.log_softmax(masked.widen(logits))
  possible = jnp.isfinite(log_probs)
  log_probs = jnp.where(possible, log_probs, 0)
  return -jnp.sum(jnp.where(possible, jnp.exp(log_probs), 0) * log_probs, -1)


def _by_token(advantages: ArrayLike) -> Float[Array, "B _"]:
  """[B] becomes [B, 1], which broadcasts over the tokens."""
  advantages = masked.widen(advantages)
  return advantages if advantages.ndim == 2 else advantages[:, None]


def _log_ratio(
  logp: ArrayLike, old_logp: ArrayLike, mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
  """logp - old_logp; 0 under the mask, so that padding can hold anything."""
  return jnp.where(mask, masked.widen(logp) - masked.widen(old_logp), 0)


def _surrogate(log_ratio, advantages, mask, clip_low, clip_high):
  ratio = jnp.exp(log_ratio)
  plain = ratio * advantages
  clipped = _clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
  smaller = (clipped < plain).astype(ratio.dtype)
  metrics = {"clip_fraction": masked.mean(smaller, mask)}
  metrics |= _ratio_metrics(log_ratio, mask)
  return jnp.minimum(plain, clipped), metrics


def _ratio_metrics(log_ratio: Float[Array, "B T"], mask: Array) -> Metrics:
  return {
    "ratio": masked.mean(jnp.exp(log_ratio), mask),
    "approx_kl": masked.mean(jnp.expm1(log_ratio) - log_ratio, mask),
  }


def _clip(x: Array, low: ArrayLike, high: ArrayLike) -> Array:
  """Clips with gradient 1 at the bounds themselves, as PyTorch does; that of
  `jnp.clip` is 1/2 there."""
  return jnp.where(x < low, low, jnp.where(x > high, high, x))
