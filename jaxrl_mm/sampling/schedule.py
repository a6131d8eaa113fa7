"""Continuous batching: slots are decoded in short segments, sorted out between.

Between two segments the host takes out the rows that have ended and gives
their slots to the rows that wait, so no row waits for the longest. What was
weighed:

* The host looks at a few numbers a segment, which costs well under one step;
  the same bookkeeping inside the program would need every prompt prefilled
  first or a prefill branch in the decode loop.
* Slots take single rows, not whole groups: with answers of log-normal length
  a group of 8 keeps less than half of its slots busy. A group's queries are
  gathered to its one prompt cache, for queries are small and caches are not.
* Each slot writes at its own length, so that what is attended is the longest
  row in the slots, rounded up to a block times a power of two. Every such
  capacity is one program; there are few, whatever the lengths.
* When nothing waits any more the slots are cut to a quarter as rows end, so
  that a few long rows do not carry the empty slots along.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from jaxrl_mm import sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.models.attention import Seats
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.sampling import decode
from jaxrl_mm.sampling.board import Board
from jaxrl_mm.sampling.decode import Drawn, Plan, Sampling, Slots
from jaxrl_mm.sampling.stops import Stop
from jaxrl_mm.structs import Completions, Prompts

# Enough tokens that a matrix product is bound by arithmetic, not by weights.
PREFILL_TOKENS = 2048
# Groups whose first rows have ended still hold a place.
PLACES_PER_FULL_GROUP = 3
# Slots a shard below which there is no program for fewer.
FEWEST_SLOTS = 8
# A segment ends early when one in so many slots could take another row.
REFILL = 16
# When no row waits, the slots are cut to one in so many.
SHRINK = 4


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How the work is cut; it changes no row.

  Attributes:
    slots: rows decoded at once, over all devices.
    segment: most tokens between two looks at which rows have ended.
    block: tokens; a cache has room for a power of two of them.
  """

  slots: int = 256
  segment: int = 32
  block: int = 256


# (number of the row in the call, its tokens since the last time)
Heard = Callable[[int, Int[np.ndarray, " N"]], None]


class Programs(NamedTuple):
  """The jitted parts of a sampler, see `decode`."""

  empty: Callable[..., Slots]
  prefill: Callable[..., Slots]
  decode: Callable[..., tuple[Slots, Drawn]]
  resize: Callable[..., Slots]


def make_sampler(
  config: ModelConfig,
  sampling: Sampling,
  schedule: Schedule = Schedule(),
  stop: Stop | None = None,
) -> Callable[..., Completions]:
  """A function that draws the same rows as `generate`, and does it faster.

  Args:
    config: of the model.
    sampling: what is drawn.
    schedule: how the work is cut.
    stop: ends rows by their text, see `stops.stop_strings`.

  Returns:
    `(params, prompts, key, limits=None, heard=None) -> Completions` of B rows,
    cut over the batch axes of the mesh in use. `limits` [B] are the most
    tokens of each row; `heard` is told the tokens as they come.
  """
  programs = make_programs(config, sampling, schedule)

  def sample(
    params: Params,
    prompts: Prompts,
    key: PRNGKeyArray,
    limits: Int[np.ndarray, " B"] | None = None,
    heard: Heard | None = None,
  ) -> Completions:
    rows = prompts.tokens.shape[0] * sampling.samples_per_prompt
    limits = np.full(rows, sampling.max_tokens) if limits is None else limits
    _check(limits, rows, sampling.max_tokens)
    result = _blank(rows, sampling.max_tokens)
    boards = _boards(prompts, sampling, schedule)
    places, count = boards[0].places, len(boards[0].rows)
    slots = programs.empty(
      prompts,
      places * len(boards),
      count * len(boards),
      min(schedule.block, sampling.max_tokens),
    )
    while any(board.live or board.has_next for board in boards):
      slots = _start_prompts(programs, params, prompts, slots, boards)
      fresh = [board.fill() for board in boards]
      room = _room(boards, result, limits, schedule)
      slots, fresh = _fit(programs, slots, boards, fresh, room)
      plan = _plan(boards, fresh, limits)
      slots, drawn = programs.decode(params, slots, plan, key)
      _collect(jax.device_get(drawn), boards, result, stop, heard)
    tokens = np.where(result.mask, result.tokens, sampling.pad_token)
    return _to_device(result._replace(tokens=tokens))

  return sample


def make_programs(
  config: ModelConfig, sampling: Sampling, schedule: Schedule
) -> Programs:
  """All programs; they are compiled once for each size they meet."""
  fixed = config, sampling
  jit = partial(jax.jit, donate_argnames="slots")
  steps = min(schedule.segment, sampling.max_tokens)
  return Programs(
    jax.jit(partial(decode.empty, *fixed), static_argnums=(1, 2, 3)),
    jit(partial(decode.prefill, *fixed)),
    jit(partial(decode.decode, *fixed, steps=steps)),
    jax.jit(decode.resize, static_argnames="capacity"),
  )


def _check(limits, rows, most):
  if len(limits) != rows or np.min(limits) < 1 or np.max(limits) > most:
    raise InputError(
      f"the sampler got {len(limits)} limits between {np.min(limits)} and "
      f"{np.max(limits)} for {rows} rows; give one limit a row, from 1 to "
      f"max_tokens, which is {most}"
    )


def _blank(rows, tokens):
  """Completions in which nothing is drawn yet."""
  shape = rows, tokens
  tokens = np.zeros(shape, np.int32)
  return Completions(tokens, np.zeros(shape, bool), np.zeros(shape, np.float32))


class Sizes(NamedTuple):
  """Of one batch shard: places, slots, and prompts that are run together."""

  places: int
  slots: int
  chunk: int


def sizes(
  schedule: Schedule, *, prompts: int, length: int, samples: int, shards: int
) -> Sizes:
  """How much of a call is done at once.

  Args:
    schedule: how the work is cut.
    prompts: of one shard.
    length: S, tokens of a prompt.
    samples: G.
    shards: of the batch.
  """
  slots = max(min(schedule.slots // shards, prompts * samples), 1)
  # More rows at once would wait for slots, and their places with them.
  chunk = max(min(PREFILL_TOKENS // length, slots // samples // 2), 1)
  # Room for a chunk beside the rows in slots, so that it never has to wait.
  places = min(-(-PLACES_PER_FULL_GROUP * slots // samples), slots + chunk)
  places = prompts if slots == prompts * samples else min(places, prompts)
  return Sizes(places, slots, min(chunk, places))


def _boards(prompts, sampling, schedule):
  """One for each batch shard."""
  shards, samples = sharding.batch_shards(), sampling.samples_per_prompt
  count, length = prompts.tokens.shape[0] // shards, prompts.tokens.shape[1]
  cut = sizes(
    schedule, prompts=count, length=length, samples=samples, shards=shards
  )
  return [
    Board(range(i * count, (i + 1) * count), samples, *cut)
    for i in range(shards)
  ]


def _room(boards, result, limits, schedule):
  """Tokens that the longest row may have after the next segment, rounded up."""
  rows = [row.number for board in boards for row in board.rows if row]
  lengths = result.mask[rows].sum(1) + schedule.segment
  need = np.max(np.minimum(lengths, limits[rows]), initial=1)
  room = schedule.block
  while room < need:
    room *= 2
  return min(room, result.tokens.shape[1])


def _start_prompts(programs, params, prompts, slots, boards):
  """Runs prompts, a chunk in each shard at a time, while slots want rows."""
  while any(started := [board.next_prompts() for board in boards]):
    pairs = []
    for board, some in zip(boards, started):
      nowhere = (0, board.places)
      pairs += some + [nowhere] * (board.chunk - len(some))
    which, place = np.array(pairs, np.int32).T
    slots = programs.prefill(params, prompts, slots, which, place)
  return slots


def _fit(programs, slots, boards, fresh, room):
  """Slots with the room that is needed, fewer where few rows are left."""
  fewer = _fewer(boards)
  if fewer and max(board.live for board in boards) <= fewer:
    kept = [board.shrink(min(board.places, fewer), fewer) for board in boards]
  elif room == jax.tree.leaves(slots.cache.k)[0].shape[3]:
    return slots, fresh
  else:
    kept = [(range(b.places), range(len(b.rows))) for b in boards]
  places, rows = (np.concatenate(x).astype(np.int32) for x in zip(*kept))
  fresh = [[some[i] for i in kept[1]] for some, kept in zip(fresh, kept)]
  return programs.resize(slots, places, rows, capacity=room), fresh


def _fewer(boards):
  """Slots a shard after the next cut, 0 while there is none."""
  fewer = len(boards[0].rows) // SHRINK
  waiting = any(board.has_next for board in boards)
  return 0 if waiting or fewer < FEWEST_SLOTS else fewer


def _plan(boards, fresh, limits):
  """What the boards say, as arrays."""
  rows = [row for board in boards for row in board.rows]
  number = np.array([row.number if row else 0 for row in rows], np.int32)
  used = np.array([row is not None for row in rows])
  seats = [board.seats() for board in boards]
  # Ending before the first step would go round for ever.
  leave_at = max(_leave_at(boards), np.sum(~used) + 1)
  return Plan(
    fresh=np.concatenate(fresh).astype(bool),
    row=number,
    limit=np.where(used, limits[number], 0).astype(np.int32),
    seats=Seats(*(np.concatenate(x) for x in zip(*seats))),
    leave_at=np.int32(leave_at),
  )


def _leave_at(boards):
  """How many slots must be done before it is worth to sort them out."""
  slots = sum(len(board.rows) for board in boards)
  if any(board.has_next for board in boards):
    free = slots - sum(board.live for board in boards)
    return free + max(slots // REFILL, 1)
  return slots - _fewer(boards) * len(boards)


def _collect(drawn, boards, result, stop, heard):
  """Writes what was drawn into the rows of the result; ended rows leave."""
  seats = [(board, i) for board in boards for i in range(len(board.rows))]
  for slot, (board, i) in enumerate(seats):
    if (row := board.rows[i]) is None:
      continue
    start, length = int(drawn.start[slot]), int(drawn.length[slot])
    tokens, done = result.tokens[row.number], bool(drawn.done[slot])
    tokens[start:length] = drawn.tokens[slot, : length - start]
    if stop and (keep := stop(tokens[:length], start)) is not None:
      length, done = keep, True
    result.mask[row.number, start:length] = True
    result.logp[row.number, start:length] = drawn.logp[slot, : length - start]
    if heard:
      heard(row.number, tokens[start:length])
    if done:
      board.leave(i)


def _to_device(result):
  """Rows over the batch axes of the mesh in use; every process has them all."""
  mesh = jax.sharding.get_mesh()
  return jax.device_put(result, None if mesh.empty else sharding.rows(mesh))
