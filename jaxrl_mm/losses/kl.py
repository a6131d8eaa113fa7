"""Estimators of KL(policy || reference) from tokens the policy drew
(http://joschu.net/blog/kl-approx.html). With d = logp - reference_logp:"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxrl_mm import masked


def k1(
  logp: Float[ArrayLike, "..."], reference_logp: Float[ArrayLike, "..."]
) -> Float[Array, "..."]:
  """d, per token in nats: unbiased, can be negative."""
  return masked.widen(logp) - masked.widen(reference_logp)


def k2(
  logp: Float[ArrayLike, "..."], reference_logp: Float[ArrayLike, "..."]
) -> Float[Array, "..."]:
  """d^2 / 2, per token in nats: biased, its gradient is that of the KL."""
  return 0.5 * jnp.square(k1(logp, reference_logp))


def k3(
  logp: Float[ArrayLike, "..."], reference_logp: Float[ArrayLike, "..."]
) -> Float[Array, "..."]:
  """exp(-d) - 1 + d, per token in nats: unbiased and never negative.

  The penalty of GRPO (https://arxiv.org/abs/2402.03300, equation 4).
  """
  d = k1(logp, reference_logp)
  return jnp.expm1(-d) + d
