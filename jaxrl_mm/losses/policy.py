"""Policy-gradient losses on log-probs. All of them are to be minimised."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_mm import masked
from jaxrl_mm.structs import Metrics

Aggregate = Literal["sequence", "token"] | float


def aggregate_tokens(
  per_token: Float[Array, "B T"], mask: Array, aggregate: Aggregate
) -> Float[Array, ""]:
  """One number from a loss per token.

  Args:
    per_token: [B, T].
    mask: [B, T] true where a token counts.
    aggregate: "sequence" averages each row over its tokens, then the rows
      (GRPO); "token" averages over all tokens of the batch (DAPO); a number c
      divides each row's sum by c, then averages the rows (Dr.GRPO with c the
      maximal length). A row without tokens adds zero in every case.
  """
  if aggregate == "sequence":
    return jnp.mean(masked.mean(per_token, mask, axis=-1))
  if aggregate == "token":
    return masked.mean(per_token, mask)
  return jnp.mean(masked.total(per_token, mask, axis=-1) / aggregate)


def clipped_surrogate(
  logp: Float[Array, "B T"],
  old_logp: Float[Array, "B T"],
  advantages: Float[Array, "B *T"],
  mask: Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  log_ratio_bounds: tuple[float, float] | None = None,
  dual_clip: float | None = None,
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
      (log 1e-3, log 1e3). The gradient is zero beyond the bounds.
    dual_clip: for negative advantages the loss is at most dual_clip * |A|
      (https://arxiv.org/abs/1912.09729, equation 5); above 1.
    aggregate: see `aggregate_tokens`.

  Returns:
    The loss, and metrics: `clip_fraction`, share of tokens where the clipped
    term is the smaller; `ratio`, mean importance ratio; `approx_kl`, mean k3
    from the drawing policy.
  """
  mask = jnp.asarray(mask, bool)
  if advantages.ndim == 1:
    advantages = advantages[:, None]
  # The masked ratio is 1, so that padding can hold anything without a NaN.
  log_ratio = jnp.where(mask, logp - old_logp, 0)
  if log_ratio_bounds is not None:
    log_ratio = jnp.clip(log_ratio, *log_ratio_bounds)
  ratio = jnp.exp(log_ratio)
  plain = ratio * advantages
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
  objective = jnp.minimum(plain, clipped)
  if dual_clip is not None:
    bounded = jnp.maximum(objective, dual_clip * advantages)
    objective = jnp.where(advantages < 0, bounded, objective)
  metrics = {
    "clip_fraction": masked.mean((clipped < plain).astype(ratio.dtype), mask),
    "ratio": masked.mean(ratio, mask),
    "approx_kl": masked.mean(jnp.expm1(log_ratio) - log_ratio, mask),
  }
  return aggregate_tokens(-objective, mask, aggregate), metrics
