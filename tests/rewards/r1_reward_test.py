"""R1-Reward's formula against its released function."""

from pathlib import Path

import numpy as np
import pytest

from jaxrl_mm.rewards import r1_reward
from jaxrl_mm.rewards.compose import score
from jaxrl_mm.rewards.judge import JudgeDown

R1 = np.load(Path(__file__).parents[1] / "golden" / "stable_reinforce.npz")
LAYOUT, RESULT, VERDICT = R1["reward_grid/in/format_result_consistency"].T


def test_released_reading_is_the_released_function():
  reward = r1_reward.combine(RESULT, VERDICT, LAYOUT, reading="released")
  np.testing.assert_allclose(reward, R1["reward_grid/out/reward"], 1e-12)


def test_papers_reading_has_no_penalty():
  reward = r1_reward.combine(RESULT, VERDICT, LAYOUT)
  expected = RESULT * (1 + 0.5 * (VERDICT == 1)) + 0.5 * LAYOUT
  np.testing.assert_allclose(reward, expected, 1e-12)


TEXTS = [
  "<think>so 1</think><answer>1</answer>",
  "<think>so 2</think><answer>1</answer>",
  "<think>hm</think><answer>1</answer>",
  "<think>so 2</think><answer>2</answer>",
  "so 1 <answer>1</answer>",
]
REPLIES = {"so 1": "1", "so 2": "0", "hm": "?"}


@pytest.mark.parametrize("reading", ["paper", "released"])
def test_terms_add_up_to_the_formula(reading):
  asked = []

  def judge(prompts):
    asked.extend(prompts)
    return [next(r for k, r in REPLIES.items() if k in p) for p in prompts]

  terms = r1_reward.terms(judge, reading=reading, attempts=2)
  scores = score(terms, TEXTS, ["1"] * 5)
  result, layout = np.array([1, 1, 1, 0, 1]), np.array([1, 1, 1, 1, 0])
  verdict = np.array([1, -1, 0, -1, 1])
  expected = r1_reward.combine(result, verdict, layout, reading=reading)
  np.testing.assert_allclose(scores.total, expected)
  np.testing.assert_allclose(scores.verifiable, result + 0.5 * layout)
  # The right answers once, and once more the one that was not clear.
  assert len(asked) == 5


def test_a_judge_that_is_down_fails_the_step():
  def judge(prompts):
    raise JudgeDown("gone")

  with pytest.raises(JudgeDown):
    score(r1_reward.terms(judge), TEXTS, ["1"] * 5)
