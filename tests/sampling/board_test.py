"""Slots on paper: who sits where, and how many of them work."""

import numpy as np
import pytest

from jaxrl_mm.sampling import schedule
from jaxrl_mm.sampling.board import Board
from jaxrl_mm.sampling.decode import Sampling
from jaxrl_mm.sampling.schedule import Schedule
from jaxrl_mm.structs import Prompts


def _run(board, limits):
  """Only counts; steps times slots."""
  lengths, cost = np.zeros_like(limits), 0
  while board.live or board.has_next:
    while board.next_prompts():
      pass
    board.fill()
    fewer = schedule._fewer([board])
    if fewer and board.live <= fewer:
      board.shrink(min(board.places, fewer), fewer)
    seats = [row and row.number for row in board.rows]
    rows = np.array([number for number in seats if number is not None])
    working = lambda rows=rows: lengths[rows] < limits[rows]
    for _ in range(32):
      ended = len(board.rows) - working().sum()
      if ended >= schedule._leave_at([board]) and ended:
        break
      lengths[rows] += working()
      cost += len(board.rows)
    for slot, number in enumerate(seats):
      if number is not None and lengths[number] >= limits[number]:
        board.leave(slot)
  np.testing.assert_array_equal(lengths, limits)
  return cost


def _board(prompts, samples, tokens, slots, length):
  sampling = Sampling(samples, tokens, -1, 0, -1)
  words = np.zeros((prompts, length), np.int32)
  mask, group = np.ones_like(words, bool), np.arange(prompts)
  given = Prompts(words, mask, None, group)
  return schedule._boards(given, sampling, Schedule(slots=slots))[0]


@pytest.mark.parametrize(
  "prompts, samples, length", [(64, 8, 256), (512, 1, 64), (32, 16, 1200)]
)
def test_slots_stay_busy_with_a_long_tail(prompts, samples, length):
  """Of log-normal lengths; waiting for the longest would leave 3 of 10."""
  rows = prompts * samples
  normal = np.random.default_rng(0).standard_normal(rows)
  limits = np.clip(np.exp(normal) * 128 / 5, 1, 128).astype(int)
  cost = _run(_board(prompts, samples, 128, 32, length), limits)
  assert limits.sum() / cost > 0.85


def test_rows_of_equal_length_waste_no_slot():
  cost = _run(_board(16, 4, 32, 16, 64), np.full(64, 20))
  assert cost == 64 * 20


def test_rows_find_the_place_of_their_prompt():
  board = Board(range(3, 6), samples=2, places=2, slots=3, chunk=1)
  while board.next_prompts():
    pass
  assert board.fill() == [True, True, True]
  assert [row.number for row in board.rows] == [6, 7, 8]
  row_of, seat_of = board.seats()
  assert seat_of.tolist() == [0, 1, 2]
  assert row_of[0].tolist() == [0, 1] and row_of[1, 0] == 2
  board.leave(0)
  # The place is still needed by its other row.
  assert not board.next_prompts()
  assert board.fill() == [True, False, False]
  assert board.rows[0] == (9, 1, 1)
