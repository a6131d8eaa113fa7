"""Estimators of KL(policy || reference) from tokens the policy drew
(http://joschu.net/blog/kl-approx.html). With d = logp - reference_logp:"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def k1(
  logp: Float[Array, "..."], reference_logp: Float[Array, "..."]
) -> Float[Array, "..."]:
  """d, per token in nats: unbiased, can be negative."""
  return logp - reference_logp


def k2(
  logp: Float[Array, "..."], reference_logp: Float[Array, "..."]
) -> Float[Array, "..."]:
  """d^2 / 2, per token in nats: biased, its gradient is that of the KL."""
  return 0.5 * jnp.square(logp - reference_logp)


def k3(
  logp: Float[Array, "..."], reference_logp: Float[Array, "..."]
) -> Float[Array, "..."]:
  """exp(-d) - 1 + d, per token in nats: unbiased and never negative.

  The penalty of GRPO (https://arxiv.org/abs/2402.03300, equation 4).
  """
  d = logp - reference_logp
  return jnp.expm1(-d) + d
