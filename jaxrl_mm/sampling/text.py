"""Questions without pictures, answered by the model of this process."""

import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxrl_mm.data import templates
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.tokenizer import Tokenizer
from jaxrl_mm.errors import InputError
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.sampling.decode import Sampling
from jaxrl_mm.sampling.schedule import make_sampler
from jaxrl_mm.structs import Prompts


def make_answerer(
  config: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  *,
  prompt_tokens: int,
  max_tokens: int,
  batch: int = 8,
  temperature: float = 0.0,
  seed: int = 0,
) -> Callable[[list[str]], list[str]]:
  """A function from questions to replies, for `rewards.judge.InProcess`.

  Each question is put as the user's turn of the tokenizer's chat form. One
  program is compiled; the last batch is filled up with its first question.

  Args:
    config, params, tokenizer: the model.
    prompt_tokens: room for a question; a longer one is an InputError.
    max_tokens: of a reply.
    batch: questions answered at once.
    temperature: 0 takes the most likely token.
    seed: of the draws, which go on from call to call.
  """
  sample = make_sampler(
    config,
    Sampling(
      samples_per_prompt=1,
      max_tokens=max_tokens,
      end_token=tokenizer.eos_token_id,
      pad_token=tokenizer.pad_token_id,
      image_token=templates.image_token(tokenizer, templates.TEXT),
      temperature=temperature,
    ),
  )
  calls = itertools.count()

  def answer(questions: list[str]) -> list[str]:
    replies = []
    for start in range(0, len(questions), batch):
      part = questions[start : start + batch]
      full = part + part[:1] * (batch - len(part))
      prompts = encode_questions(full, tokenizer, prompt_tokens)
      key = jax.random.fold_in(jax.random.key(seed), next(calls))
      tokens = np.asarray(sample(params, prompts, key).tokens)
      replies += tok.decode(tokenizer, tokens)[: len(part)]
    return replies

  return answer


def encode_questions(
  questions: Sequence[str], tokenizer: Tokenizer, prompt_tokens: int
) -> Prompts:
  """Questions as left-padded prompts without pictures, numpy [P, S]."""
  tokens = np.full((len(questions), prompt_tokens), tokenizer.pad_token_id)
  mask = np.zeros(tokens.shape, bool)
  for row, question in enumerate(questions):
    ids = templates.prompt_ids(
      tokenizer,
      question,
      [],
      name=repr(question[:40]),
      markup=templates.TEXT,
    )
    if len(ids) > prompt_tokens:
      raise InputError(
        f"the question {question[:40]!r} has {len(ids)} tokens and there is "
        f"room for {prompt_tokens}; raise prompt_tokens"
      )
    tokens[row, prompt_tokens - len(ids) :] = ids
    mask[row, prompt_tokens - len(ids) :] = True
  group = np.arange(len(questions), dtype=np.int32)
  return Prompts(tokens.astype(np.int32), mask, None, group)
