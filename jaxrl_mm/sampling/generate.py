"""Prefill and decode of a whole batch in one jitted program."""

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxrl_mm import sharding
from jaxrl_mm.models import vlm
from jaxrl_mm.models.attention import Seats
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.sampling.decode import Plan, Sampling, decode, empty, prefill
from jaxrl_mm.structs import Completions, Prompts


def generate(
  config: ModelConfig,
  sampling: Sampling,
  params: vlm.Params,
  prompts: Prompts,
  key: PRNGKeyArray,
) -> Completions:
  """Draws `samples_per_prompt` completions for each prompt, all at once.

  A pure function to jit into other programs. Every row has a slot until the
  longest has ended; `schedule.make_sampler` gives the same rows faster where
  lengths differ.

  Args:
    config: of the model.
    sampling: see `Sampling`.
    params: of the model.
    prompts: [P, S] left-padded; `images` None where there are no pictures.
    key: of this call.

  Returns:
    Completions of B = P * G rows, the samples of a prompt side by side.
  """
  places, samples = prompts.tokens.shape[0], sampling.samples_per_prompt
  rows, steps = places * samples, sampling.max_tokens
  shards = sharding.batch_shards()
  slots = empty(config, sampling, prompts, places, rows, steps)
  here = jnp.arange(places) % (places // shards)
  slots = prefill(config, sampling, params, prompts, slots, here, here)
  seat = jnp.arange(rows) % (rows // shards)
  plan = Plan(
    fresh=jnp.ones(rows, bool),
    row=jnp.arange(rows),
    limit=jnp.full(rows, steps),
    seats=Seats(seat.reshape(places, samples), seat),
    leave_at=jnp.int32(rows),
  )
  _, drawn = decode(config, sampling, params, slots, plan, key, steps)
  mask = jnp.arange(steps) < drawn.length[:, None]
  return Completions(
    tokens=jnp.where(mask, drawn.tokens, sampling.pad_token),
    mask=mask,
    logp=jnp.where(mask, drawn.logp, 0),
  )
