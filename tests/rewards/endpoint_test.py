"""The judge over HTTP, against a server made here."""

import time

import pytest

from jaxrl_mm.rewards import consistency
from jaxrl_mm.rewards.endpoint import Endpoint
from jaxrl_mm.rewards.judge import JudgeDown


def test_replies_belong_to_their_prompts_whatever_the_order(serve):
  def reply(prompt, _):
    time.sleep(0.02 * (int(prompt) % 3))
    return f"reply to {prompt}"

  prompts = [str(i) for i in range(24)]
  with serve(reply) as server:
    replies = Endpoint(server.url, concurrency=4)(prompts)
    assert replies == [f"reply to {p}" for p in prompts]
    assert 1 < server.busiest <= 4
    assert set(server.models) == {"first"}


def test_failed_requests_are_tried_again_and_only_those(serve):
  reply = lambda prompt, times: 503 if prompt == "b" and times < 3 else prompt
  with serve(reply) as server:
    replies = Endpoint(server.url, model="mine", retries=2)(["a", "b", "c"])
    assert replies == ["a", "b", "c"]
    assert server.asked == {"a": 1, "b": 3, "c": 1}
    assert set(server.models) == {"mine"}


def test_an_endpoint_that_stays_broken_is_an_error(serve):
  with serve(lambda prompt, times: 500) as server:
    with pytest.raises(JudgeDown, match="after 1 retries.*out of order"):
      Endpoint(server.url, retries=1)(["a"])
    assert server.asked == {"a": 2}


def test_a_request_that_is_refused_is_not_repeated(serve):
  with serve(lambda prompt, times: 400) as server:
    with pytest.raises(JudgeDown, match="BadRequest"):
      Endpoint(server.url)(["a"])
    assert server.asked == {"a": 1}


def test_a_slow_endpoint_times_out(serve):
  def reply(prompt, _):
    time.sleep(1.0)
    return prompt

  with serve(reply) as server:
    judge = Endpoint(server.url, model="m", timeout=0.2, retries=0)
    start = time.perf_counter()
    with pytest.raises(JudgeDown, match="Timeout"):
      judge(["a"])
    assert time.perf_counter() - start < 0.9


def test_nobody_there(serve):
  with serve(lambda prompt, times: prompt) as server:
    url = server.url
  with pytest.raises(JudgeDown, match="127.0.0.1"):
    Endpoint(url, retries=0)(["a"])
  assert Endpoint(url)([]) == []


def test_it_judges_consistency(serve):
  reply = lambda prompt, times: "1" if "so 1" in prompt else "0"
  texts = [f"<think>so {i}</think><answer>1</answer>" for i in (1, 2, 1)]
  with serve(reply) as server:
    verdicts = consistency.verdicts(texts, Endpoint(server.url))
  assert verdicts.tolist() == [1, -1, 1]
