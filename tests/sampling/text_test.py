"""Replies in the order of the questions, whatever the batch."""

import jax
import pytest

from jaxrl_mm.data import sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import config, vlm
from jaxrl_mm.rewards import consistency
from jaxrl_mm.rewards.judge import InProcess
from jaxrl_mm.sampling.text import encode_questions, make_answerer

QUESTIONS = ["What is the sum?", "Which is larger?", "How many twos?"]


@pytest.fixture(scope="module")
def tokenizer():
  return tok.build([*sources.digits_texts(), consistency.prompt("3 <answer>1")])


@pytest.fixture(scope="module")
def model(tokenizer):
  sizes = config.digits(vocab=len(tokenizer))
  return sizes, vlm.init(sizes, jax.random.key(1)), tokenizer


def test_a_reply_depends_on_its_question_alone(model, quick_compile):
  del quick_compile
  pairs = make_answerer(*model, prompt_tokens=16, max_tokens=6, batch=2)
  alone = make_answerer(*model, prompt_tokens=16, max_tokens=6, batch=1)
  together = pairs(QUESTIONS)
  assert together == [alone([q])[0] for q in QUESTIONS]
  assert len(set(together)) > 1
  assert pairs([]) == []


def test_the_prompt_is_the_chat_form_padded_on_the_left(tokenizer):
  prompts = encode_questions(QUESTIONS[:1], tokenizer, 16)
  assert prompts.images is None
  ids = prompts.tokens[0][prompts.mask[0]]
  assert tokenizer.decode(ids) == (
    "<|im_start|>user\nWhat is the sum?<|im_end|>\n<|im_start|>assistant\n"
  )
  assert not prompts.mask[0, : 16 - len(ids)].any()


def test_a_question_without_room_is_named(tokenizer):
  with pytest.raises(InputError, match="'What is the sum.' has 13 tokens.* 4;"):
    encode_questions(QUESTIONS[:1], tokenizer, 4)


def test_it_judges(model, quick_compile):
  del quick_compile
  answer = make_answerer(*model, prompt_tokens=256, max_tokens=2, batch=2)
  texts = ["<think>a</think><answer>1</answer>"] * 3
  verdicts = consistency.verdicts(texts, InProcess(answer), attempts=1)
  assert verdicts.shape == (3,)
  assert len(set(verdicts.tolist())) == 1
