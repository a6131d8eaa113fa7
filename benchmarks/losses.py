"""What the losses and transforms cost, each alone under jit.

  python benchmarks/losses.py --json benchmarks/results/losses_cpu.jsonl

Losses are timed with their gradient in the log-probs. The floor of a function
is the time to read its arguments and write its results once, at the bandwidth
that adding two [B, T] arrays reaches on the same device. "of step" sets the
time against a training step of a model of 1e9 parameters on the same tokens,
6 * 1e9 * B * T operations, at the rate that a matrix product reaches here,
which no training step does. "on v5p" has the floor and the step of a TPU v5p
(459 TFLOP/s in bfloat16, 2765 GB/s), from its data sheet.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_mm import algorithms
from jaxrl_mm.losses import (
  kl,
  policy,
  preference,
  reward_model,
  supervised,
  value,
)
from jaxrl_mm.structs import Trajectories

PARAMETERS = 1e9
V5P_OPERATIONS, V5P_BYTES = 459e12, 2765e9
FIELDS = "advantages", "mask", "rewards", "returns"


class Case(NamedTuple):
  """A function to time; `carry` threads the result into the next call."""

  name: str
  function: Callable
  arguments: tuple
  carry: bool = False


def rollouts(rows: int, tokens: int, per_token: bool = False) -> Trajectories:
  """Rows of half to full length, 8 for each prompt, right or wrong."""
  rng = np.random.default_rng(0)
  mask = np.arange(tokens) < rng.integers(tokens // 2, tokens + 1, (rows, 1))
  normal = lambda: jnp.asarray(
    rng.normal(-1, 0.1, (rows, tokens)).astype(np.float32)
  )
  rewards = jnp.asarray(rng.integers(0, 2, rows), jnp.float32)
  return Trajectories(
    tokens=jnp.zeros((rows, tokens), jnp.int32),
    mask=jnp.asarray(mask),
    logp=normal(),
    group=jnp.arange(rows) // 8,
    rewards=rewards,
    verifiable=rewards,
    advantages=normal() if per_token else rewards - 0.5,
    reference_logp=normal(),
    values=normal(),
  )


def losses(t: Trajectories) -> Iterator[Case]:
  """Every loss, with its gradient in the first argument."""
  one = lambda x: x[0] if isinstance(x, tuple) else x
  mean = lambda x: jnp.mean(one(x))
  sums = tuple(jnp.sum(x, axis=1) for x in (t.logp, t.reference_logp))
  pairs = (*sums, *sums)
  lengths = jnp.sum(t.mask, axis=1)
  ratio = t.logp, t.reference_logp, t.advantages, t.mask
  pre_clip = lambda *x: policy.clipped_surrogate(*x, log_ratio_bounds=(-7, 7))
  cases = {
    "policy.clipped_surrogate": (policy.clipped_surrogate, ratio),
    "policy.clipped_surrogate, Pre-CLIP": (pre_clip, ratio),
    "policy.gspo": (policy.gspo, ratio),
    "policy.cispo": (policy.cispo, ratio),
    "policy.reinforce": (policy.reinforce, (t.logp, *ratio[2:])),
    "policy.entropy": (policy.entropy, (t.logp,)),
    "kl.k1": (kl.k1, ratio[:2]),
    "kl.k2": (kl.k2, ratio[:2]),
    "kl.k3": (kl.k3, ratio[:2]),
    "supervised.cross_entropy": (supervised.cross_entropy, (t.logp, t.mask)),
    "value.clipped": (value.clipped, (t.values, *ratio[:2], t.mask)),
    "preference.dpo": (preference.dpo, pairs),
    "preference.cdpo": (preference.cdpo, pairs),
    "preference.ipo": (preference.ipo, pairs),
    "preference.bco": (preference.bco, (*pairs, jnp.ones(()))),
    "preference.mpo": (preference.mpo, (*pairs, lengths, jnp.ones(()))),
    "preference.simpo": (preference.simpo, (*sums, lengths, lengths)),
    "preference.orpo": (preference.orpo, (*sums, lengths, lengths)),
    "preference.kto": (preference.kto, (*sums, lengths > 0, jnp.ones(()))),
    "reward_model.bradley_terry": (reward_model.bradley_terry, sums),
  }
  for name, (loss, arguments) in cases.items():
    scalar = lambda *x, loss=loss: mean(loss(*x))
    yield Case(name, jax.value_and_grad(scalar), arguments)
  yield Case(
    "policy.truncated_importance",
    policy.truncated_importance,
    (t.logp, t.reference_logp, t.mask),
  )


def transforms(t: Trajectories, each: Trajectories) -> Iterator[Case]:
  """Every transform; some on advantages [B], some on [B, T]."""
  by_row = {
    "advantages_from_rewards": algorithms.advantages_from_rewards(),
    "clip_rewards": algorithms.clip_rewards(-1, 1),
    "shape_overlong": algorithms.shape_overlong(4096, 1024),
    "center_by_group": algorithms.center_by_group(),
    "scale_by_group_std": algorithms.scale_by_group_std(),
    "leave_one_out": algorithms.leave_one_out(),
    "mask_uniform_groups": algorithms.mask_uniform_groups(),
    "center_by_batch": algorithms.center_by_batch(),
    "scale_by_batch_std": algorithms.scale_by_batch_std(),
    "penalize_kl": algorithms.penalize_kl(0.1),
    "shuffle_rewards": algorithms.shuffle_rewards(0),
  }
  by_token = {
    "whiten": algorithms.whiten(),
    "filter_by_sigma": algorithms.filter_by_sigma(),
    "filter_by_sigma, released": algorithms.filter_by_sigma(bounds="released"),
    "clip_advantages": algorithms.clip_advantages(5),
    "discounted_returns": algorithms.discounted_returns(gamma=0.99),
    "gae": algorithms.gae(),
  }
  for table, rows in ((by_row, t), (by_token, each)):
    for name, transform in table.items():
      yield Case(
        name,
        lambda t, state, f=transform: [
          getattr(f.update(t, state)[0], field) for field in FIELDS
        ],
        (rows, transform.init(rows)),
      )


def replay(rows: int, tokens: int, capacity: int) -> Case:
  """Insert and draw, the state given away as a training step does."""
  t = rollouts(rows, tokens)
  buffer = algorithms.selective_sample_buffer(capacity)
  name = f"selective_sample_buffer, {capacity} rows of {tokens}"
  return Case(name, buffer.update, (t, buffer.init(t)), carry=True)


def seconds(case: Case, repeats: int) -> tuple[float, int]:
  """Shortest time of a call, and bytes of its arguments and results."""
  donated = (1,) if case.carry else ()
  compiled = (
    jax.jit(case.function, donate_argnums=donated)
    .lower(*case.arguments)
    .compile()
  )
  memory, arguments, times = compiled.memory_analysis(), case.arguments, []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    times.append(time.perf_counter() - start)
    if case.carry:
      arguments = arguments[0], result[1]
  traffic = memory.argument_size_in_bytes + memory.output_size_in_bytes
  return min(times[1:]), traffic


def device_rates(t: Trajectories, repeats: int) -> tuple[float, float]:
  """Bytes a second of an addition, operations a second of a product."""
  m = jnp.ones((2048, 2048))
  added, traffic = seconds(Case("", jnp.add, (t.logp, t.values)), repeats)
  product, _ = seconds(Case("", jnp.matmul, (m, m)), repeats)
  return traffic / added, 2 * 2048**3 / product


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, default=512, help="B")
  parser.add_argument("--tokens", type=int, default=4096, help="T")
  parser.add_argument("--capacity", type=int, default=65536, help="of SSB")
  parser.add_argument("--replay_tokens", type=int, default=256, help="T of SSB")
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--json", help="append one object a line to this file")
  flags = parser.parse_args()
  device = jax.devices()[0].device_kind
  t = rollouts(flags.rows, flags.tokens)
  each = rollouts(flags.rows, flags.tokens, per_token=True)
  bandwidth, rate = device_rates(t, flags.repeats)
  operations = 6 * PARAMETERS * flags.rows * flags.tokens
  step = operations / rate
  print(
    f"{device}, jax {jax.__version__}, B = {flags.rows}, T = {flags.tokens}"
  )
  print(
    f"{bandwidth / 1e9:.1f} GB/s, {rate / 1e9:.0f} GFLOP/s, step {step:.0f} s"
  )
  head = "ms", "floor ms", "x floor", "of step", "on v5p"
  print(f"{'':44}" + "".join(f"{x:>10}" for x in head))
  buffer = replay(flags.rows, flags.replay_tokens, flags.capacity)
  for case in (*losses(t), *transforms(t, each), buffer):
    spent, traffic = seconds(case, flags.repeats)
    # A step must take B rows out of the buffer and put B in, not touch all.
    if case.carry:
      traffic = 4 * sum(x.nbytes for x in jax.tree.leaves(case.arguments[0]))
    floor = traffic / bandwidth
    on_v5p = traffic / V5P_BYTES / (operations / V5P_OPERATIONS)
    print(
      f"{case.name:44}{spent * 1e3:10.2f}{floor * 1e3:10.3f}"
      f"{spent / floor:10.1f}{spent / step:10.1e}{on_v5p:10.1e}"
    )
    record = {
      "name": case.name,
      "device": device,
      "jax": jax.__version__,
      "rows": flags.rows,
      "tokens": flags.replay_tokens if case.carry else flags.tokens,
      "seconds": spent,
      "floor_seconds": floor,
      "bytes": traffic,
      "share_of_step": spent / step,
      "share_on_v5p": on_v5p,
    }
    if flags.json:
      with open(flags.json, "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
  main()
