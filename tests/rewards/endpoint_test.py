"""The judge over HTTP, against a server made here."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jaxrl_mm.rewards import consistency
from jaxrl_mm.rewards.endpoint import Endpoint
from jaxrl_mm.rewards.judge import JudgeDown


class Server(ThreadingHTTPServer):
  """Answers by `reply(prompt, times it was asked)`: a text or a status."""

  daemon_threads = True

  def __init__(self, reply):
    super().__init__(("127.0.0.1", 0), Handler)
    self.reply, self.lock = reply, threading.Lock()
    self.asked, self.models = {}, []
    self.busy, self.busiest = 0, 0

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
  def do_GET(self):
    self._send(200, {"object": "list", "data": [{"id": "first"}, {"id": "b"}]})

  def do_POST(self):
    size = int(self.headers["Content-Length"])
    request = json.loads(self.rfile.read(size))
    prompt, server = request["messages"][0]["content"], self.server
    with server.lock:
      server.models.append(request["model"])
      server.busy += 1
      server.busiest = max(server.busiest, server.busy)
      server.asked[prompt] = server.asked.get(prompt, 0) + 1
    reply = server.reply(prompt, server.asked[prompt])
    with server.lock:
      server.busy -= 1
    if isinstance(reply, int):
      self._send(reply, {"error": {"message": "out of order"}})
    else:
      message = {"role": "assistant", "content": reply}
      choice = {"index": 0, "message": message, "finish_reason": "stop"}
      self._send(
        200,
        {
          "id": "1",
          "object": "chat.completion",
          "created": 0,
          "model": request["model"],
          "choices": [choice],
        },
      )

  def _send(self, status, body):
    data = json.dumps(body).encode()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      self.send_response(status)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(data)))
      self.end_headers()
      self.wfile.write(data)

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serve(reply):
  with Server(reply) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()


def test_replies_belong_to_their_prompts_whatever_the_order():
  def reply(prompt, _):
    time.sleep(0.02 * (int(prompt) % 3))
    return f"reply to {prompt}"

  prompts = [str(i) for i in range(24)]
  with serve(reply) as server:
    replies = Endpoint(server.url, concurrency=4)(prompts)
    assert replies == [f"reply to {p}" for p in prompts]
    assert 1 < server.busiest <= 4
    assert set(server.models) == {"first"}


def test_failed_requests_are_tried_again_and_only_those():
  reply = lambda prompt, times: 503 if prompt == "b" and times < 3 else prompt
  with serve(reply) as server:
    replies = Endpoint(server.url, model="mine", retries=2)(["a", "b", "c"])
    assert replies == ["a", "b", "c"]
    assert server.asked == {"a": 1, "b": 3, "c": 1}
    assert set(server.models) == {"mine"}


def test_an_endpoint_that_stays_broken_is_an_error():
  with serve(lambda prompt, times: 500) as server:
    with pytest.raises(JudgeDown, match="after 1 retries.*out of order"):
      Endpoint(server.url, retries=1)(["a"])
    assert server.asked == {"a": 2}


def test_a_request_that_is_refused_is_not_repeated():
  with serve(lambda prompt, times: 400) as server:
    with pytest.raises(JudgeDown, match="BadRequest"):
      Endpoint(server.url)(["a"])
    assert server.asked == {"a": 1}


def test_a_slow_endpoint_times_out():
  def reply(prompt, _):
    time.sleep(1.0)
    return prompt

  with serve(reply) as server:
    judge = Endpoint(server.url, model="m", timeout=0.2, retries=0)
    start = time.perf_counter()
    with pytest.raises(JudgeDown, match="Timeout"):
      judge(["a"])
    assert time.perf_counter() - start < 0.9


def test_nobody_there():
  with serve(lambda prompt, times: prompt) as server:
    url = server.url
  with pytest.raises(JudgeDown, match="127.0.0.1"):
    Endpoint(url, retries=0)(["a"])
  assert Endpoint(url)([]) == []


def test_it_judges_consistency():
  reply = lambda prompt, times: "1" if "so 1" in prompt else "0"
  texts = [f"<think>so {i}</think><answer>1</answer>" for i in (1, 2, 1)]
  with serve(reply) as server:
    verdicts = consistency.verdicts(texts, Endpoint(server.url))
  assert verdicts.tolist() == [1, -1, 1]
