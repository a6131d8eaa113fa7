"""Eight CPU devices for every test, set before jax starts."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# Tiny programs take longer to compile than to run. Newer compilers do not have
# this flag, and end where they do not know one.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from jaxrl_mm import pytree  # noqa: E402
from jaxrl_mm.data import sources, tokenizer  # noqa: E402
from jaxrl_mm.errors import InputError  # noqa: E402
from jaxrl_mm.models import config, vlm  # noqa: E402
from jaxrl_mm.models.attention import Causal  # noqa: E402
from jaxrl_mm.models.huggingface import internvl, qwen2_5_vl  # noqa: E402
from jaxrl_mm.models.huggingface.save import save_params  # noqa: E402
from jaxrl_mm.rewards import sandbox, services  # noqa: E402
from jaxrl_mm.sampling.decode import Sampling  # noqa: E402
from jaxrl_mm.sampling.generate import generate  # noqa: E402


def random_params(model):
  """Weights without one zero bias or neutral scale, by numpy."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda key: vlm.init(model, key), jax.random.key(0))

  def fill(name, shape):
    noise = rng.standard_normal(shape.shape, np.float32)
    if name.endswith("scale"):
      return jnp.asarray(1 + 0.3 * noise)
    return jnp.asarray(noise * (0.3 if name.endswith("table") else 0.15))

  return pytree.map_with_name(fill, shapes)


# In the form of the package: a service, and what calls and compares it.
_SERVICES = """
class TicketAPI:
  def _load_scenario(self, config, long_context=False):
    self.tickets = list(config["tickets"])

  def close_ticket(self, ticket_id):
    self.tickets.remove(ticket_id)
    return {"left": len(self.tickets)}

  def count_tickets(self):
    return {"left": len(self.tickets), "to": 9}

services = {}

def execute_multi_turn_func_call(
  func_call_list, initial_config, involved_classes, model_name, test_entry_id,
  long_context=False, is_evaL_run=False,
):
  assert involved_classes == ["TicketAPI"]
  if model_name not in services:
    services[model_name] = TicketAPI()
    services[model_name]._load_scenario(initial_config["TicketAPI"])
  service, found = services[model_name], []
  names = {n: getattr(service, n) for n in dir(service) if n[0] != "_"}
  for call in func_call_list:
    try:
      found.append(str(eval(call, names)))
    except Exception as error:
      found.append(f"Error during execution: {error}")
  return found, {"TicketAPI": service}
"""
_CHECKER = """
from .multi_turn_utils import execute_multi_turn_func_call as execute

def multi_turn_checker(turns, truths, entry, category, model_name):
  of = lambda calls, name: execute(
    calls, entry["initial_config"], entry["involved_classes"], name, entry["id"]
  )
  given = []
  for steps, truth in zip(turns, truths):
    for step in steps:
      given += of(step, "model")[0]
    wanted, true = of(truth, "truth")
    _, ours = of([], "model")
    same = vars(ours["TicketAPI"]) == vars(true["TicketAPI"])
    if not same or set(wanted) - set(given):
      return {"valid": False}
  return {"valid": True}
"""


@pytest.fixture
def bfcl_package(tmp_path, monkeypatch):
  """A package of the name and the form of bfcl_eval, with one service."""
  try:
    sandbox.check()
  except InputError as error:
    pytest.skip(str(error))
  folder = tmp_path / "site" / "bfcl_eval" / "eval_checker" / "multi_turn_eval"
  folder.mkdir(parents=True)
  for place in (folder, *folder.parents[:2]):
    (place / "__init__.py").touch()
  (folder / "multi_turn_utils.py").write_text(_SERVICES)
  (folder / "multi_turn_checker.py").write_text(_CHECKER)
  monkeypatch.syspath_prepend(tmp_path / "site")
  services.check.cache_clear()
  yield
  services.check.cache_clear()


@pytest.fixture(scope="session")
def tiny():
  """The demo's model with 32 words, and four tokens a tile."""
  demo = config.digits(vocab=32)
  vision = dataclasses.replace(demo.vision, image_size=8, patch_size=2)
  return dataclasses.replace(demo, vision=vision)


@pytest.fixture(scope="session")
def params(tiny):
  """Weights for `tiny` without one zero bias or neutral scale, by numpy.

  They are large enough that the logits differ by more than rounding.
  """
  return random_params(tiny)


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory):
  """A Qwen2.5-VL of random weights as the hub has it, with its tokenizer."""
  golden = Path(__file__).parent / "golden"
  about = json.loads((golden / "qwen2_5_vl.json").read_text())
  folder = tmp_path_factory.mktemp("hub") / "qwen2_5_vl"
  fields = about["config"]
  fields["vision_config"] |= {"depth": 2, "fullatt_block_indexes": [1]}
  model = qwen2_5_vl.read_config(fields)
  table = qwen2_5_vl.table(model, ())
  save_params(random_params(model), table, folder, like=None, dtype="float32")
  (folder / "config.json").write_text(json.dumps(fields))
  PreTrainedTokenizerFast(
    tokenizer_file=str(golden / "qwen2_5_vl_tokenizer.json"),
    pad_token="<|endoftext|>",
    eos_token="<|im_end|>",
    chat_template=about["chat_template"],
  ).save_pretrained(folder)
  return folder


@pytest.fixture(scope="session")
def internvl_folder(tmp_path_factory):
  """An InternVL of random weights as transformers saves it."""
  golden = Path(__file__).parent / "golden" / "internvl.json"
  about = json.loads(golden.read_text())["300m"]
  folder = tmp_path_factory.mktemp("hub") / "internvl"
  model = internvl.read_config(about["config"])
  table = internvl.table(model, about["shapes"].keys())
  save_params(random_params(model), table, folder, like=None, dtype="float32")
  (folder / "config.json").write_text(json.dumps(about["config"]))
  tokenizer.build(sources.digits_texts()).save_pretrained(folder)
  return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
  """Where this process keeps its programs."""
  return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def quick_compile(compiled):
  """Little optimisation, and no program twice.

  Tiny programs take longer to compile than to run.
  """
  _compile(True, compiled, 0.0)
  yield
  _compile(False, None, 1.0)


def _compile(quickly, folder, seconds):
  jax.config.update("jax_disable_most_optimizations", quickly)
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
  compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def unchecked():
  """No checks of types: where they cost more than what is tested, and other
  tests make them."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def right_padded():
  """Prompts with the padding of each row behind it."""

  def turn(prompts):
    roll = lambda x: jnp.stack(
      [jnp.roll(row, m.sum(), 0) for row, m in zip(x, prompts.mask)]
    )
    names = "tokens", "mask", "positions"
    per_token = {n: getattr(prompts, n) for n in names}
    return prompts._replace(**jax.tree.map(roll, per_token))

  return turn


@pytest.fixture(scope="session")
def score():
  """`(config, image_token) -> jitted (params, prompts) -> (loss, numbers)`.

  The mean log-loss of the prompts' own tokens and its gradient, with hidden
  states and logits beside it.
  """

  def make(config, image_token):
    def loss(params, prompts):
      features = None
      if prompts.images is not None:
        features = vlm.encode_images(config, params, prompts.images)
      x = vlm.embed(config, params, prompts.tokens, features, image_token)
      where, _ = vlm.positions(prompts, 0)
      mask = prompts.mask
      hidden, _ = vlm.run_decoder(config, params, x, where, Causal(mask))
      logits = hidden @ vlm.head(params).T
      logp = jax.nn.log_softmax(logits[:, :-1])
      picked = prompts.tokens[:, 1:, None]
      logp = jnp.take_along_axis(logp, picked, axis=-1)[..., 0]
      scored = mask[:, 1:] & mask[:, :-1]
      mean = -jnp.sum(logp * scored) / jnp.sum(scored)
      return mean, (hidden, logits)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))

  return make


@pytest.fixture(scope="session")
def greedy():
  """`(config, params, prompts, image_token) -> [P, T]` most likely tokens."""

  def draw(config, params, prompts, image_token, length=64):
    sampling = Sampling(
      samples_per_prompt=1,
      max_tokens=length,
      end_token=-1,
      pad_token=0,
      image_token=image_token,
      temperature=0.0,
    )
    sample = jax.jit(partial(generate, config, sampling))
    return np.asarray(sample(params, prompts, jax.random.key(0)).tokens)

  return draw


class ChatServer(ThreadingHTTPServer):
  """An OpenAI-compatible endpoint of this machine.

  It answers by `reply(prompt, times it was asked)`: a text or a status. Of a
  prompt with pictures that is its text; `requests` has them whole.
  """

  daemon_threads = True

  def __init__(self, reply):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.reply, self.lock = reply, threading.Lock()
    self.asked, self.models, self.requests = {}, [], []
    self.busy, self.busiest = 0, 0

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
  def do_GET(self):
    self._send(200, {"object": "list", "data": [{"id": "first"}, {"id": "b"}]})

  def do_POST(self):
    size = int(self.headers["Content-Length"])
    request = json.loads(self.rfile.read(size))
    prompt, server = request["messages"][0]["content"], self.server
    if isinstance(prompt, list):
      prompt = prompt[-1]["text"]
    with server.lock:
      server.requests.append(request)
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


@pytest.fixture(scope="session")
def serve():
  """`with serve(reply) as server`: see `ChatServer`."""

  @contextlib.contextmanager
  def start(reply):
    with ChatServer(reply) as server:
      thread = threading.Thread(target=server.serve_forever, args=(0.01,))
      thread.start()
      try:
        yield server
      finally:
        server.shutdown()
        thread.join()

  return start
