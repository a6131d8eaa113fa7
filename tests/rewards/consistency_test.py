"""What the judge is asked and how its replies are read."""

import numpy as np
import pytest

from jaxrl_mm.rewards import consistency
from jaxrl_mm.rewards.judge import InProcess, JudgeDown

TEXT = "<think>one\ntwo\n\nthree\nfour</think><answer>2</answer>"


def test_conclusion_is_the_last_three_lines():
  assert consistency.conclusion_of(TEXT) == "two; three; four"
  assert consistency.conclusion_of("<answer>1</answer>") == ""


@pytest.mark.parametrize(
  "answer, sentence",
  [
    ("<answer>1</answer>", "response 1 is better"),
    ("<answer> 2 </answer>", "response 2 is better"),
    ("<answer>3</answer>", "the same"),
    ("<answer>neither</answer>", "neither"),
    ("no tag", "no tag"),
  ],
)
def test_answer_in_words(answer, sentence):
  assert consistency.answer_sentence(answer) == sentence


def test_prompt_has_both_statements():
  question = consistency.prompt(TEXT)
  assert "two; three; four" in question and "response 2 is better" in question


@pytest.mark.parametrize(
  "reply, verdict",
  [
    ("1", 1),
    (" 0\n", -1),
    ("Output: 1", 1),
    ("output:0", -1),
    ("I say 1.", 1),
    ("1 or 0", -1),
    ("maybe", 0),
    ("", 0),
  ],
)
def test_replies(reply, verdict):
  assert consistency.verdict_of(reply) == verdict


def test_unclear_replies_are_asked_for_again_a_few_times():
  replies = iter([["1", "?", "?"], ["0", "?"], ["?"]])
  sizes = []

  def judge(prompts):
    sizes.append(len(prompts))
    return next(replies)

  result = consistency.verdicts(["a", "b", "c"], judge)
  np.testing.assert_array_equal(result, [1, -1, 0])
  assert sizes == [3, 2, 1]


def test_nothing_to_ask():
  assert consistency.verdicts([], InProcess(lambda p: p)).shape == (0,)


def test_a_model_in_process_is_a_judge():
  judge = InProcess(lambda prompts: ["1" for _ in prompts])
  np.testing.assert_array_equal(consistency.verdicts([TEXT] * 3, judge), 1)
  short = InProcess(lambda prompts: ["1"])
  with pytest.raises(JudgeDown, match="1 replies to 3 prompts"):
    consistency.verdicts([TEXT] * 3, short)
