"""Losses on pairs of completions, a better and a worse one of each prompt.

All take log-probs summed over the completion's tokens, one number a row, in
nats, and give one loss a pair, so that the caller decides how to average.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxrl_mm import masked
from jaxrl_mm.structs import Metrics, Number

Rows = Float[ArrayLike, " B"]


def dpo(
  policy_chosen: Rows,
  policy_rejected: Rows,
  reference_chosen: Rows,
  reference_rejected: Rows,
  *,
  beta: ArrayLike = 0.1,
) -> Float[Array, " B"]:
  """-log sigmoid(beta h), h = log-ratio of chosen - log-ratio of rejected.

  DPO (https://arxiv.org/abs/2305.18290, equation 7); the preference part of
  MPO (https://arxiv.org/abs/2504.16656, equation 3).

  Args:
    policy_chosen, policy_rejected: [B] under the policy being trained.
    reference_chosen, reference_rejected: [B] under the frozen reference.
    beta: how dear it is to leave the reference.
  """
  margin = implicit_reward(
    policy_chosen, reference_chosen, beta=beta
  ) - implicit_reward(policy_rejected, reference_rejected, beta=beta)
  return -jax.nn.log_sigmoid(margin)


def cdpo(
  policy_chosen: Rows,
  policy_rejected: Rows,
  reference_chosen: Rows,
  reference_rejected: Rows,
  *,
  beta: ArrayLike = 0.1,
  label_noise: ArrayLike = 0.1,
) -> Float[Array, " B"]:
  """(1 - e) DPO of the pair + e DPO of the pair swapped.

  Conservative DPO (https://ericmitchell.ai/cdpo.pdf).

  Args:
    policy_chosen, policy_rejected, reference_chosen, reference_rejected,
      beta: as in `dpo`.
    label_noise: e, the share of labels believed to be the wrong way round.
  """
  chosen = policy_chosen, reference_chosen
  rejected = policy_rejected, reference_rejected
  straight = dpo(chosen[0], rejected[0], chosen[1], rejected[1], beta=beta)
  swapped = dpo(rejected[0], chosen[0], rejected[1], chosen[1], beta=beta)
  return (1 - label_noise) * straight + label_noise * swapped


def ipo(
  policy_chosen: Rows,
  policy_rejected: Rows,
  reference_chosen: Rows,
  reference_rejected: Rows,
  *,
  beta: ArrayLike = 0.1,
) -> Float[Array, " B"]:
  """(h - 1 / (2 beta))^2, h as in `dpo`.

  IPO (https://arxiv.org/abs/2310.12036, equation 17, with tau called beta).
  Its code in TRL divides every log-prob by its number of tokens; to have
  that, pass means instead of sums.

  Args:
    policy_chosen, policy_rejected, reference_chosen, reference_rejected: as
      in `dpo`.
    beta: strength of the regularisation; h is drawn to 1 / (2 beta).
  """
  margin = implicit_reward(
    policy_chosen, reference_chosen, beta=1.0
  ) - implicit_reward(policy_rejected, reference_rejected, beta=1.0)
  return jnp.square(margin - 1 / (2 * beta))


def bco(
  policy_chosen: Rows,
  policy_rejected: Rows,
  reference_chosen: Rows,
  reference_rejected: Rows,
  shift: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
) -> Float[Array, " B"]:
  """-log sigmoid(r_chosen - shift) - log sigmoid(-(r_rejected - shift)).

  BCO (https://arxiv.org/abs/2404.04656), r the implicit reward;
  the quality part of MPO (https://arxiv.org/abs/2504.16656, equation 4).

  Args:
    policy_chosen, policy_rejected, reference_chosen, reference_rejected,
      beta: as in `dpo`.
    shift: average of past implicit rewards, from `reward_shift`; a constant
      to the gradient.
  """
  shift = jax.lax.stop_gradient(shift)
  chosen = implicit_reward(policy_chosen, reference_chosen, beta=beta)
  rejected = implicit_reward(policy_rejected, reference_rejected, beta=beta)
  good = -jax.nn.log_sigmoid(chosen - shift)
  bad = -jax.nn.log_sigmoid(shift - rejected)
  return good + bad


def generation(policy_chosen: Rows, lengths: ArrayLike) -> Float[Array, " B"]:
  """-log p of the chosen completion / its number of tokens.

  The generation part of MPO (https://arxiv.org/abs/2504.16656, equation 5).

  Args:
    policy_chosen: [B] under the policy being trained.
    lengths: [B] numbers of tokens; 0 gives zero.
  """
  return -_per_token(policy_chosen, lengths)


def mpo(
  policy_chosen: Rows,
  policy_rejected: Rows,
  reference_chosen: Rows,
  reference_rejected: Rows,
  lengths: ArrayLike,
  shift: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  weights: tuple[ArrayLike, ArrayLike, ArrayLike] = (0.8, 0.2, 1.0),
  aggregate: Literal["sequence", "token"] = "sequence",
  present: ArrayLike = True,
) -> tuple[Float[Array, ""], Metrics]:
  """w0 DPO + w1 BCO + w2 generation, averaged over pairs.

  Mixed Preference Optimization (https://arxiv.org/abs/2504.16656, equation
  2). The paper gives no weights; these, and beta, are InternVL's.

  Args:
    policy_chosen, policy_rejected, reference_chosen, reference_rejected,
      beta: as in `dpo`.
    lengths: [B] numbers of tokens of the chosen completions.
    shift: as in `bco`.
    weights: of the three parts.
    aggregate: of the generation part: "sequence", the paper's, is the mean of
      each completion's mean; "token", the released code's, is the mean over
      all chosen tokens of the batch.
    present: [B] false where a pair only pads the batch; it counts nowhere.

  Returns:
    The loss, and metrics: the parts `dpo`, `bco`, `generation`; the mean
    implicit rewards `reward_chosen`, `reward_rejected`; `accuracy`, the share
    of pairs where the first is the larger.
  """
  pairs = policy_chosen, policy_rejected, reference_chosen, reference_rejected
  mean = lambda x: masked.mean(x, present)
  parts = {
    "dpo": mean(dpo(*pairs, beta=beta)),
    "bco": mean(bco(*pairs, shift, beta=beta)),
  }
  nll = generation(policy_chosen, lengths)
  # A mean over tokens is the mean over rows weighted by their lengths.
  tokens = jnp.maximum(mean(lengths * 1.0), 1e-9)
  share = lengths / tokens if aggregate == "token" else 1.0
  parts["generation"] = mean(nll * share)
  loss = sum(w * part for w, part in zip(weights, parts.values()))
  chosen = implicit_reward(policy_chosen, reference_chosen, beta=beta)
  rejected = implicit_reward(policy_rejected, reference_rejected, beta=beta)
  metrics = {
    "reward_chosen": mean(chosen),
    "reward_rejected": mean(rejected),
    "accuracy": mean((chosen > rejected) * 1.0),
  }
  return loss, parts | metrics


def simpo(
  policy_chosen: Rows,
  policy_rejected: Rows,
  chosen_lengths: ArrayLike,
  rejected_lengths: ArrayLike,
  *,
  beta: ArrayLike = 2.0,
  margin: ArrayLike = 1.0,
) -> Float[Array, " B"]:
  """-log sigmoid(beta (m_chosen - m_rejected) - margin), m the mean log-prob.

  SimPO (https://arxiv.org/abs/2405.14734, equation 6): no reference policy.

  Args:
    policy_chosen, policy_rejected: [B] under the policy being trained.
    chosen_lengths, rejected_lengths: [B] numbers of tokens.
    beta, margin: of the ranges the paper searched, what it chose for its
      Llama-3 base model.
  """
  chosen = _per_token(policy_chosen, chosen_lengths)
  rejected = _per_token(policy_rejected, rejected_lengths)
  return -jax.nn.log_sigmoid(beta * (chosen - rejected) - margin)


def orpo(
  policy_chosen: Rows,
  policy_rejected: Rows,
  chosen_lengths: ArrayLike,
  rejected_lengths: ArrayLike,
  *,
  weight: ArrayLike = 0.1,
) -> Float[Array, " B"]:
  """NLL of chosen - weight log sigmoid(log odds of chosen - of rejected).

  ORPO (https://arxiv.org/abs/2403.07691, equations 6 and 7): odds are p /
  (1 - p) with log p the mean log-prob of a token; no reference policy.

  Args:
    policy_chosen, policy_rejected: [B] under the policy being trained.
    chosen_lengths, rejected_lengths: [B] numbers of tokens.
    weight: of the odds ratio.
  """
  chosen = _per_token(policy_chosen, chosen_lengths)
  rejected = _per_token(policy_rejected, rejected_lengths)
  ratio = _log_odds(chosen) - _log_odds(rejected)
  return -chosen - weight * jax.nn.log_sigmoid(ratio)


def kto(
  policy: Rows,
  reference: Rows,
  desirable: ArrayLike,
  reference_point: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  desirable_weight: ArrayLike = 1.0,
  undesirable_weight: ArrayLike = 1.0,
) -> Float[Array, " B"]:
  """w (1 - sigmoid(+-(r - z))), per completion: pairs are not needed.

  KTO (https://arxiv.org/abs/2402.01306), r the implicit reward;
  plus for desirable completions, minus for undesirable ones.

  Args:
    policy, reference: [B] under the policy being trained and the reference.
    desirable: [B] true where the completion is a good one.
    reference_point: z = beta times the KL of policy and reference, estimated
      by `kto_reference_point`; a constant to the gradient.
    beta: as in `dpo`.
    desirable_weight, undesirable_weight: w of either kind.
  """
  desirable = jnp.asarray(desirable, bool)
  gain = implicit_reward(policy, reference, beta=beta) - jax.lax.stop_gradient(
    reference_point
  )
  weight = jnp.where(desirable, desirable_weight, undesirable_weight)
  return weight * jax.nn.sigmoid(jnp.where(desirable, -gain, gain))


def kto_reference_point(
  policy: Rows, reference: Rows, *, beta: ArrayLike = 0.1
) -> Float[Array, ""]:
  """max(0, mean implicit reward) over completions of other prompts.

  Args:
    policy, reference: [B] of completions set behind prompts they do not
      belong to (https://arxiv.org/abs/2402.01306).
    beta: as in `kto`.
  """
  reward = implicit_reward(policy, reference, beta=beta)
  return jnp.maximum(jax.lax.stop_gradient(jnp.mean(reward)), 0)


def implicit_reward(
  policy: Rows, reference: Rows, *, beta: ArrayLike
) -> Float[Array, " B"]:
  """beta (log-prob under the policy - under the reference), per row."""
  return beta * (masked.widen(policy) - masked.widen(reference))


class ShiftState(NamedTuple):
  """Average of the implicit rewards so far, and of how many batches."""

  mean: Float[Array, ""]
  count: Int[Array, ""]


def reward_shift(
  *, decay: Number | None = None, order: Literal["past", "current"] = "past"
) -> optax.GradientTransformation:
  """The moving average of implicit rewards that `bco` subtracts.

  `init(rewards) -> state`, `update(rewards, state) -> (shift, state)`, once an
  optimizer step with the rewards of the whole global batch, of any shape.

  Args:
    decay: of an exponential average; None is the mean over all batches, each
      counting once.
    order: "past", the paper's, is the average of the batches before this one,
      zero at first; "current", the released code's, takes this batch in
      before use.
  """

  def init(rewards):
    del rewards
    return ShiftState(jnp.zeros(()), jnp.zeros((), jnp.int32))

  def update(rewards, state, params=None):
    del params
    batch = jnp.mean(jax.lax.stop_gradient(masked.widen(rewards)))
    count = state.count + 1
    # The first batch sets the average; there is nothing to decay from.
    step = 1 / count if decay is None else jnp.where(count == 1, 1, 1 - decay)
    mean = state.mean + (batch - state.mean) * step
    shift = state.mean if order == "past" else mean
    return shift, ShiftState(mean.astype(state.mean.dtype), count)

  return optax.GradientTransformation(init, update)


def _per_token(logp: ArrayLike, lengths: ArrayLike) -> Float[Array, " B"]:
  """Mean log-prob of a token; an empty completion has zero."""
  return masked.widen(logp) / jnp.maximum(jnp.asarray(lengths), 1)


def _log_odds(logp: Float[Array, " B"]) -> Float[Array, " B"]:
  """log(p / (1 - p)); p = 1 counts as the largest float below it."""
  limit = jnp.log1p(-jnp.finfo(logp.dtype).epsneg)
  logp = jnp.minimum(logp, limit)
  return logp - jnp.log(-jnp.expm1(logp))
