"""Metrics by hand, and unbiased pass@k by counting."""

from itertools import combinations

import numpy as np
import pytest

from jaxrl_mm.evaluate import metrics
from jaxrl_mm.evaluate.items import Verdict


def test_pass_at_1_is_a_mean_with_the_spread_of_items():
  scores = np.array([[1, 1], [1, 0], [0, 0], [1, 1]], float)
  found = metrics.pass_at_1(scores)
  assert found.value == 5 / 8
  # Item means 1, 0.5, 0, 1 have a standard deviation of 0.4787.
  reach = 1.96 * 0.47871355387816905 / 2
  assert found.low == pytest.approx(5 / 8 - reach)
  assert found.high == 1
  assert metrics.pass_at_1(np.ones((1, 3))) == (1, 0, 1)


def test_the_interval_covers_the_truth_as_often_as_it_says():
  rng = np.random.default_rng(0)
  hits = 0
  for _ in range(400):
    chance = rng.beta(2, 2, size=(100, 1))
    found = metrics.pass_at_1((rng.random((100, 4)) < chance).astype(float))
    hits += found.low <= 0.5 <= found.high
  assert 0.92 < hits / 400 < 0.98


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_counts_all_subsets(k):
  scores = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1.0]])
  subsets = [any(s) for row in scores for s in combinations(row, k)]
  assert metrics.pass_at_k(scores, k) == pytest.approx(np.mean(subsets))


def test_a_part_of_the_points_is_not_right():
  assert metrics.pass_at_k(np.array([[0.5, 0.9]]), 2) == 0


@pytest.mark.parametrize(
  "picks, score, pick",
  [
    ("AAB", 1, "A"),
    ("ABB", 0, "B"),
    ("AB", 0.5, "A"),
    ("BAC", 1 / 3, "B"),
    ("--A", 1, "A"),
    ("---", 0, None),
  ],
)
def test_vote(picks, score, pick):
  runs = [Verdict(float(p == "A"), None if p == "-" else p) for p in picks]
  assert metrics.vote(runs)[:2] == (pytest.approx(score), pick)


def test_categories_and_groups():
  scores = [1.0, 0.0, 1.0, 1.0]
  assert metrics.by_category("xyxx", scores) == {"x": 1, "y": 0}
  assert metrics.all_right("aabb", scores) == 0.5


def test_agreement_and_kappa():
  left = [True] * 50 + [False] * 50
  right = [True] * 40 + [False] * 10 + [True] * 20 + [False] * 30
  found = metrics.agreement(left, right)
  assert found["agreement"] == pytest.approx(0.7)
  assert found["kappa"] == pytest.approx(0.4)
  assert metrics.agreement([True], [True]) == {"agreement": 1, "kappa": 1}


def test_yes_no():
  truths = ["yes", "yes", "no", "no", "no"]
  picks = ["yes", "no", "yes", "no", None]
  found = metrics.yes_no(truths, picks)
  assert found == {
    "accuracy": 2 / 5,
    "precision": 1 / 2,
    "recall": 1 / 2,
    "f1": 1 / 2,
    "yes": 2 / 5,
  }
  assert metrics.yes_no(["no"], [None])["precision"] == 0
