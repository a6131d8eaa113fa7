"""Moves of the threshold, by hand."""

import jax
import numpy as np
import pytest

from jaxrl_mm.algorithms import calibrate


def _moves(rates, **settings):
  given = {"low": 0.1, "high": 0.2, "step": 0.5, "lowest": -1, "highest": 2}
  controller = calibrate.hold_in_band(0.0, **given | settings)
  state, update = controller.init(()), jax.jit(controller.update)
  thresholds = []
  for rate in rates:
    threshold, state = update(rate, state)
    thresholds.append(float(threshold))
  return thresholds, state


def test_it_moves_outside_the_band_and_rests_inside():
  moves, _ = _moves([0.3, 0.15, 0.3, 0.05, 0.15], decay=0.0)
  assert moves == [0.5, 0.5, 1.0, 0.5, 0.5]


def test_it_stays_between_its_ends():
  assert _moves([0.9] * 6, decay=0.0)[0][-1] == 2
  assert _moves([0.0] * 6, decay=0.0)[0][-1] == -1


def test_the_rate_is_smoothed_without_bias_to_zero():
  # Averages: 0.16, then (0.5 * 0.16 + 0.26) / 1.5 = 0.2267 > 0.2.
  moves, state = _moves([0.16, 0.26], decay=0.5)
  assert moves == [0, 0.5]
  assert float(state.rate) == pytest.approx(0.5 * 0.08 + 0.5 * 0.26)


def test_a_loop_whose_rate_falls_with_the_threshold_settles_in_the_band():
  controller = calibrate.hold_in_band(
    0.0, low=0.1, high=0.2, step=0.05, lowest=0, highest=1, decay=0.5
  )
  state, rates = controller.init(()), []
  threshold = 0.0
  for _ in range(60):
    rates.append(0.5 - 0.5 * float(threshold))
    threshold, state = controller.update(rates[-1], state)
  assert rates[0] == 0.5
  np.testing.assert_array_less(0.09, rates[20:])
  np.testing.assert_array_less(rates[20:], 0.21)
