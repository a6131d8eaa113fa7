"""The value loss against the released function."""

from pathlib import Path

import numpy as np
import pytest

from jaxrl_mm.losses import value

R1 = np.load(Path(__file__).parents[1] / "golden" / "stable_reinforce.npz")


@pytest.mark.parametrize("clip, name", [(0.2, "clip02"), (None, "noclip")])
def test_value_loss_is_that_of_r1_reward(clip, name):
  given = [
    R1[f"value_loss/in/{x}"]
    for x in ("values", "old_values", "returns", "action_mask")
  ]
  loss, _ = value.clipped(*given, clip=clip)
  np.testing.assert_allclose(loss, R1[f"value_loss/out/loss_{name}"], 1e-5)


def test_clipping_takes_the_larger_error():
  one = lambda x: np.full((1, 1), x, np.float32)
  loss, metrics = value.clipped(one(1.0), one(0.0), one(1.0), one(1) > 0)
  assert float(loss) == pytest.approx(0.5 * 0.8**2)
  assert float(metrics["value_clip_fraction"]) == 1
  assert float(metrics["value_error"]) == 0


def test_what_lies_under_the_mask_does_not_count():
  values = np.array([[1.0, np.nan], [np.inf, np.nan]])
  mask = np.array([[True, False], [False, False]])
  zero = np.zeros((2, 2))
  assert float(value.clipped(values, values, zero, mask)[0]) == 0.5
