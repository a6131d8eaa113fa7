"""How many rows reach a device at once, counted on paper."""

import pytest

from benchmarks.programs import Cut
from jaxrl_mm.data.loader import Layout

# 10 tokens of prompt, 4 of answer.
LAYOUT = Layout(10, 4, pictures=None)


@pytest.mark.parametrize(
  ("samples", "micro_batch", "micro_tokens", "rows"),
  [
    (4, 2, 0, 2),  # tokens are not counted
    (1, 8, 30, 2),  # 14 + 14
    (4, 8, 17, 1),
    (4, 8, 22, 3),  # 10 + 3 * 4
    (4, 2, 22, 2),
    (4, 8, 26, 4),  # a whole group
    (4, 8, 44, 6),  # and of the next one 10 + 2 * 4
  ],
)
def test_full_rows_at_once(samples, micro_batch, micro_tokens, rows):
  assert Cut(24, samples, micro_batch, micro_tokens).at_once(LAYOUT) == rows


def test_a_prompt_runs_once_for_the_rows_beside_it():
  # Two rows of a group of four at once: 12 prompts run for 24 rows.
  packed, plain = Cut(24, 4, 8, 18), Cut(24, 4, 2, 0)
  assert packed.prompts(LAYOUT) == plain.prompts(LAYOUT) == 12
  assert packed.shared(LAYOUT) == 12 * 10
  assert plain.shared(LAYOUT) == 0  # only its picture is seen once
