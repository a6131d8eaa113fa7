"""Length shaping by hand."""

import numpy as np
import pytest

from jaxrl_mm.rewards import length


def test_overlong_counts_tokens():
  texts = ["w " * n for n in (2, 6, 8, 10, 12)]
  penalty = length.overlong(
    texts,
    [""] * 5,
    count=lambda text: len(text.split()),
    max_length=10,
    buffer=4,
  )
  np.testing.assert_allclose(penalty, [0, 0, -0.5, -1, -1])


def test_cosine_joins_its_values():
  lengths = np.array([0, 50, 99.999, 100, 500])
  right = length.cosine(np.ones(5), lengths, max_length=100)
  np.testing.assert_allclose(right, [2, 1.5, 1, -10, -10], atol=1e-4)
  wrong = length.cosine(np.zeros(5), lengths, max_length=100)
  np.testing.assert_allclose(wrong, [-10, -5, 0, -10, -10], atol=1e-4)
  assert right.dtype == np.float32
  assert (np.diff(right[:3]) < 0).all() and (np.diff(wrong[:3]) > 0).all()


def test_one_row():
  assert length.cosine([True], [0], max_length=9)[0] == pytest.approx(2)
