"""Maximum likelihood."""

from typing import Literal

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxrl_mm import masked


def cross_entropy(
  logp: Float[ArrayLike, "B T"],
  mask: ArrayLike,
  *,
  aggregate: Literal["token", "sequence"] = "token",
) -> Float[Array, ""]:
  """-log p of the target tokens, in nats.

  Args:
    logp: [B, T] log-prob of each target token.
    mask: [B, T] true where a token counts.
    aggregate: "token" is the mean over all tokens of the batch, "sequence"
      the mean over rows of each row's mean. A row without tokens counts
      nowhere.
  """
  mask = jnp.asarray(mask, bool)
  if aggregate == "token":
    return -masked.mean(logp, mask)
  rows = masked.mean(logp, mask, axis=-1)
  return -masked.mean(rows, jnp.any(mask, axis=-1))
