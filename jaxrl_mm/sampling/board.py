"""Which rows sit where, and who comes next: the host's side of a schedule."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Row(NamedTuple):
  """A row of the call, by its number, and where its prompt is.

  Attributes:
    number: of the row in the call.
    sample: which of the prompt's G samples.
    place: of its prompt's cache.
  """

  number: int
  sample: int
  place: int


class Board:
  """Places and slots of one batch shard.

  Rows start in the order of their number, each as soon as a slot is free. A
  place is free again when the last row of its prompt has ended.

  Attributes:
    rows: the `Row` in each slot, or None.
    chunk: prompts that are run together.
  """

  def __init__(
    self, prompts: range, samples: int, places: int, slots: int, chunk: int
  ):
    self.rows: list[Row | None] = [None] * slots
    self.chunk = chunk
    self._first, self._samples = prompts.start, samples
    self._unstarted = deque(range(len(prompts)))
    self._waiting: deque[Row] = deque()
    # Rows of the prompt in each place that have not ended.
    self._open = [0] * places

  @property
  def places(self) -> int:
    return len(self._open)

  @property
  def live(self) -> int:
    """Rows in slots."""
    return sum(row is not None for row in self.rows)

  @property
  def has_next(self) -> bool:
    """Whether a free slot could be filled, now or later."""
    return bool(self._waiting or self._unstarted)

  def next_prompts(self) -> list[tuple[int, int]]:
    """(prompt, place) of those to run now: as many as free slots ask for.

    A chunk costs the same full or not, so it waits until it can be full,
    unless nothing else is left to do. Prompts count within the shard.
    """
    idle = len(self.rows) - self.live - len(self._waiting)
    free = [place for place, rows in enumerate(self._open) if not rows]
    count = min(self.chunk, len(free), len(self._unstarted))
    full = min(self.chunk, len(self._unstarted))
    if idle <= 0 or (count < full and self.live + len(self._waiting)):
      return []
    started = [(self._unstarted.popleft(), place) for place in free[:count]]
    for prompt, place in started:
      number = (self._first + prompt) * self._samples
      self._open[place] = self._samples
      self._waiting += [Row(number + i, i, place) for i in range(self._samples)]
    return started

  def fill(self) -> list[bool]:
    """Puts waiting rows into free slots; true for the slots it filled."""
    filled = [row is None for row in self.rows]
    for slot, free in enumerate(filled):
      filled[slot] = free and bool(self._waiting)
      if filled[slot]:
        self.rows[slot] = self._waiting.popleft()
    return filled

  def leave(self, slot: int) -> None:
    """The row in this slot has ended."""
    self._open[self.rows[slot].place] -= 1
    self.rows[slot] = None

  def shrink(
    self, places: int, slots: int
  ) -> tuple[Sequence[int], Sequence[int]]:
    """Keeps so many of both, those in use first; returns which."""
    kept = sorted(range(self.places), key=lambda i: not self._open[i])[:places]
    rows = sorted(range(len(self.rows)), key=lambda i: self.rows[i] is None)
    rows, moved = rows[:slots], {old: new for new, old in enumerate(kept)}
    self._open = [self._open[i] for i in kept]
    self.rows = [
      row and row._replace(place=moved[row.place])
      for row in (self.rows[i] for i in rows)
    ]
    return kept, rows

  def seats(
    self,
  ) -> tuple[Int[np.ndarray, "A G"], Int[np.ndarray, " R"]]:
    """The row on each seat and the seat of each row, see `attention.Seats`."""
    row_of = np.zeros((self.places, self._samples), np.int32)
    seat_of = np.zeros(len(self.rows), np.int32)
    for slot, row in enumerate(self.rows):
      if row is not None:
        row_of[row.place, row.sample] = slot
        seat_of[slot] = row.place * self._samples + row.sample
    return row_of, seat_of
