"""The repetition penalty by hand."""

import numpy as np

from jaxrl_mm.rewards import repetition


def test_share_of_repeated_ngrams():
  texts = ["a b c d", "a b A B a b", "", "a b", "x x x x x"]
  penalty = repetition.ngrams(texts, [""] * 5)
  # "a b a", "b a b", "a b a", "b a b": half are repeats.
  np.testing.assert_allclose(penalty, [0, -0.5, 0, 0, -2 / 3], 1e-6)
  doubled = repetition.ngrams(["a a a"], [""], n=1, most=-3.0)
  np.testing.assert_allclose(doubled, [-2.0], 1e-6)
