"""How fast rollouts are: prefill, decode, long tails, other samplers.

  python benchmarks/rollout.py --json benchmarks/results/rollout_cpu.jsonl \\
    --transformers_python TORCH_ENV/bin/python \\
    --tunix_python TUNIX_ENV/bin/python
  python benchmarks/rollout.py --size qwen2.5-vl-7b \\
    --json benchmarks/results/rollout_gpu.jsonl

The model is Qwen2.5-VL of the named size with random weights; no row ends
before its limit, so that every sampler does the same work. Prompts are words;
where a case says so, each also holds a picture of 112 x 112 pixels, which are
16 of its tokens.

One line a case. "decode" is the time of a call less that of the same call with
one token a row. The floor of the decode steps is the time to move what must
move, at the bandwidth that adding two large arrays reaches here: every step
the weights once, each prompt's cache once a group, each row's own cache once.
Where arithmetic is dearer than memory, as on a CPU, "of peak" says more: the
time that two operations a weight and token take at the rate of a large matrix
product, over the time of the whole call (attention and pictures not counted).
"error" is the mean distance, in nats, of the sampler's log-probs to those that
the trainer gives the same tokens.
"useful" counts drawn tokens over the whole call, prefill included. In the long
tail, limits are log-normal (median T / 5, sigma 1, cut at T) and sixteen times
as many rows as slots wait; "equal" gives each row the mean of those limits.
Peers run in processes of their own, in turns with ours, case by case.
"""

import argparse
import dataclasses
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_mm import masked, metrics
from jaxrl_mm.data import patches
from jaxrl_mm.models import config as models
from jaxrl_mm.models import vlm
from jaxrl_mm.models.config import DecoderConfig, ModelConfig, QwenVisionConfig
from jaxrl_mm.sampling.decode import Sampling
from jaxrl_mm.sampling.schedule import Schedule, make_sampler
from jaxrl_mm.structs import Prompts

PEERS = Path(__file__).parent / "peers"
SIZES = {
  "tiny": ModelConfig(
    vision=QwenVisionConfig(
      layers=4, width=128, heads=4, mlp=256, full_layers=(1, 3)
    ),
    decoder=DecoderConfig(
      layers=4,
      width=256,
      heads=8,
      kv_heads=2,
      head_dim=32,
      mlp=768,
      vocab=1024,
      tied=True,
      rope_sections=(4, 6, 6),
    ),
    dtype="float32",
  ),
  # Pictures are a part of prefill, so the tower is left out.
  "qwen2.5-vl-7b": dataclasses.replace(
    models.qwen2_5_vl_7b(), vision=None, param_dtype="bfloat16"
  ),
}
PICTURE = 112  # Pixels along a side.
START, IMAGE, END, FIRST_WORD = 2, 3, 4, 5


class Case(NamedTuple):
  """P prompts of S tokens, G samples each of T tokens at most."""

  name: str
  prompts: int
  samples: int
  prompt_tokens: int
  tokens: int
  slots: int
  lengths: str = "full"
  cache: str = "model"
  picture: bool = False


def cases(size: str) -> Iterator[Case]:
  """What is measured without peers."""
  if size == "tiny":
    shapes, prompt, tokens = (32,), 256, 128
  else:
    shapes, prompt, tokens = (64, 256), 1200, 848
  for rows in shapes:
    yield Case(f"shared, {rows}", rows // 8, 8, prompt, tokens, rows)
    yield Case(f"unshared, {rows}", rows, 1, prompt, tokens, rows)
    yield Case(
      f"int8, {rows}", rows // 8, 8, prompt, tokens, rows, cache="int8"
    )
  rows = shapes[0]
  for lengths in ("equal", "long tail"):
    yield Case(
      f"{lengths}, {16 * rows}",
      2 * rows,
      8,
      prompt,
      tokens,
      rows,
      lengths=lengths,
    )


def against_peers() -> Iterator[Case]:
  yield Case("32 prompts", 32, 1, 64, 64, 32)
  yield Case("4 prompts x 8", 4, 8, 64, 64, 32)
  yield Case("4 x 8, prompt of 1000", 4, 8, 1000, 64, 32)
  yield Case("32 pictures", 32, 1, 64, 64, 32, picture=True)
  yield Case("4 pictures x 8", 4, 8, 64, 64, 32, picture=True)


def shorter(case: Case, scale: int) -> Case:
  """Lengths divided, but for the room a picture needs."""
  cut = lambda tokens: max(tokens // scale, 2)
  prompt = max(cut(case.prompt_tokens), 20 if case.picture else 0)
  return case._replace(prompt_tokens=prompt, tokens=cut(case.tokens))


def limits(case: Case) -> np.ndarray:
  """Most tokens of each row."""
  rows, most = case.prompts * case.samples, case.tokens
  if case.lengths == "full":
    return np.full(rows, most)
  normal = np.random.default_rng(0).standard_normal(rows)
  tail = np.clip(np.exp(normal) * most / 5, 1, most).astype(int)
  equal = np.full(rows, round(tail.mean()))
  return tail if case.lengths == "long tail" else equal


class Ours:
  """Our sampler on one case."""

  def __init__(self, config: ModelConfig, params: vlm.Params, case: Case):
    sampling = Sampling(
      samples_per_prompt=case.samples,
      max_tokens=case.tokens,
      end_token=-1,
      pad_token=0,
      image_token=IMAGE,
      cache=case.cache,
    )
    schedule = Schedule(slots=case.slots)
    self._sample = make_sampler(config, sampling, schedule)
    self._config, self._samples = config, case.samples
    self._prompts = make_prompts(config, case)
    self._params, self._calls = params, 0

  def seconds(self, limits: np.ndarray) -> float:
    self._calls += 1
    key = jax.random.key(self._calls)
    start = time.perf_counter()
    drawn = self._sample(self._params, self._prompts, key, limits=limits)
    jax.block_until_ready(drawn)
    self._drawn = drawn
    return time.perf_counter() - start

  def error(self) -> float:
    """Of the log-probs of the first prompt's rows in the last call."""
    drawn = jax.tree.map(lambda x: x[: self._samples], self._drawn)
    prompts = jax.tree.map(
      lambda x: jnp.repeat(x[:1], self._samples, axis=0), self._prompts
    )
    score = jax.jit(
      vlm.completion_logp, static_argnums=0, static_argnames="image_token"
    )
    logp, _ = score(
      self._config,
      self._params,
      prompts,
      drawn.tokens,
      drawn.mask,
      image_token=IMAGE,
    )
    return float(masked.mean(jnp.abs(logp - drawn.logp), drawn.mask))


def make_prompts(config: ModelConfig, case: Case) -> Prompts:
  """Words, behind a picture each where the case wants them."""
  shape = case.prompts, case.prompt_tokens
  rng = np.random.default_rng(1)
  words = rng.integers(FIRST_WORD, config.decoder.vocab, shape, np.int32)
  mask, group = np.ones(shape, bool), np.arange(case.prompts, dtype=np.int32)
  if not case.picture:
    return Prompts(words, mask, None, group)
  layout = patches.Patching(windows=1, min_pixels=PICTURE**2)
  draw = lambda: rng.integers(256, size=(PICTURE, PICTURE, 3), dtype=np.uint8)
  rows = [
    patches.encode([draw()], layout, name="a picture") for _ in range(shape[0])
  ]
  count = rows[0][1][0].tokens
  words[:, : count + 2] = [START, *[IMAGE] * count, END]
  places = patches.positions(words[0] == IMAGE, rows[0][1], layout)
  images = jax.tree.map(lambda *x: np.stack(x), *[row for row, _ in rows])
  positions = np.broadcast_to(places, (case.prompts, *places.shape))
  return Prompts(words, mask, images, group, positions)


class Peer:
  """Another sampler in a process of its own."""

  def __init__(self, script: str, python: str, config: ModelConfig):
    self._process = subprocess.Popen(
      [python, str(PEERS / script)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.name = self.ask(dataclasses.asdict(config))

  def takes(self, case: Case) -> bool:
    """Tunix samples from text alone."""
    return not (case.picture and "tunix" in self.name)

  def seconds(self, case: Case) -> float:
    return self.ask(case._asdict())

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()

  def ask(self, what: Any) -> Any:
    """Its answer to a line."""
    self._process.stdin.write(json.dumps(what) + "\n")
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())


def bandwidth() -> float:
  """Bytes a second of adding two arrays of 128 MiB."""
  x, y = jnp.ones((2, 32, 1024, 1024))
  return 3 * x.nbytes / _shortest(jnp.add, x, y)


def peak(dtype: str) -> float:
  """Operations a second of a large matrix product."""
  side = 1024 if jax.default_backend() == "cpu" else 8192
  x = jnp.ones((side, side), dtype)
  return 2 * side**3 / _shortest(jnp.matmul, x, x)


def _shortest(f, *arrays):
  f, times = jax.jit(f), []
  for _ in range(6):
    start = time.perf_counter()
    f(*arrays).block_until_ready()
    times.append(time.perf_counter() - start)
  return min(times)


def decode_bytes(config: ModelConfig, params: vlm.Params, case: Case) -> float:
  """What all decode steps of a case with full lengths must move.

  The first token of a row comes from its prompt, so there are T - 1 steps; at
  each the own caches hold one token more.
  """
  d, width = config.decoder, jnp.dtype(config.dtype).itemsize
  weights = width * (_size(params["decoder"]) + d.vocab * d.width)
  token = 2 * d.layers * d.kv_heads
  token *= d.head_dim + 4 if case.cache == "int8" else width * d.head_dim
  steps = case.tokens - 1
  prompts = case.prompts * case.prompt_tokens * token
  own = case.prompts * case.samples * token * case.tokens / 2
  return steps * (weights + prompts + own)


def operations(config: ModelConfig, params: vlm.Params, case: Case) -> float:
  """Of the matrix products with weights, prefill once a prompt."""
  drawn, d = int(limits(case).sum()), config.decoder
  read = case.prompts * case.prompt_tokens + drawn
  return 2 * (_size(params["decoder"]) * read + d.vocab * d.width * drawn)


def _size(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def measure(
  config: ModelConfig,
  params: vlm.Params,
  case: Case,
  repeats: int,
  rate: float,
  speed: float,
) -> dict:
  """Times one case; see the top of the file."""
  before, start = metrics.compilations(), time.perf_counter()
  ours, most = Ours(config, params, case), limits(case)
  ours.seconds(most)
  compiled = metrics.compilations() - before
  first = time.perf_counter() - start
  whole = min(ours.seconds(most) for _ in range(repeats))
  record = {
    "useful": int(most.sum()) / whole,
    "seconds": whole,
    "compile_seconds": first - whole,
    "compilations": compiled,
    "of_peak": operations(config, params, case) / speed / whole,
  }
  if case.lengths == "full":
    record["error"] = ours.error()
    prefill = min(ours.seconds(np.ones_like(most)) for _ in range(repeats))
    drawn = case.prompts * case.samples * (case.tokens - 1)
    floor = decode_bytes(config, params, case) / rate
    record |= {
      "prefill": case.prompts * case.prompt_tokens / prefill,
      "decode": drawn / (whole - prefill),
      "of_floor": floor / (whole - prefill),
    }
  return record


def find_peers(
  pythons: Mapping[str, str | None], config: ModelConfig
) -> list[Peer]:
  """Those whose script starts in the interpreter named; says which do not."""
  peers = []
  for script, python in pythons.items():
    name = script.split("_")[0]
    if not python:
      print(f"{name} is skipped: give --{name}_python")
      continue
    try:
      peers.append(Peer(f"{script}.py", python, config))
    except (OSError, ValueError) as error:
      print(f"{name} is skipped: {python} does not run it ({error})")
  return peers


def compare(
  config: ModelConfig, params: vlm.Params, case: Case, peers, repeats: int
) -> Iterator[tuple[str, dict]]:
  """Ours and theirs in turns; the shortest of each counts."""
  ours, most = Ours(config, params, case), limits(case)
  runs = {"ours": lambda: ours.seconds(most)}
  runs |= {
    peer.name: lambda peer=peer: peer.seconds(case)
    for peer in peers
    if peer.takes(case)
  }
  for run in runs.values():
    run()
  turns = [{name: run() for name, run in runs.items()} for _ in range(repeats)]
  for name in runs:
    seconds = min(turn[name] for turn in turns)
    ratios = sorted(turn[name] / turn["ours"] for turn in turns)
    yield (
      f"{case.name}: {name}",
      {
        "useful": int(most.sum()) / seconds,
        "seconds": seconds,
        "times_ours": ratios[len(ratios) // 2],
      },
    )


COLUMNS = {
  "prefill": "prefill tok/s",
  "decode": "decode tok/s",
  "of_floor": "of floor",
  "of_peak": "of peak",
  "error": "error",
  "useful": "useful tok/s",
  "compile_seconds": "compile s",
  "compilations": "programs",
  "times_ours": "x ours",
}


def line(name: str, record: dict) -> str:
  cells = (
    f"{record[key]:14.5g}" if key in record else " " * 14 for key in COLUMNS
  )
  return f"{name:46}" + "".join(cells)


def about_machine() -> dict:
  """Where and when figures were taken."""
  return {
    "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
    "jax": jax.__version__,
    "date": date.today().isoformat(),
  }


def make_tell(line: Callable[[str, dict], str], about: dict, path: str | None):
  """`(case, name, record)` to a line for people and an object in the file."""

  def tell(case: Case, name: str, record: dict) -> None:
    print(line(name, record), flush=True)
    if path:
      with open(path, "a") as file:
        everything = about | case._asdict() | {"name": name} | record
        file.write(json.dumps(everything) + "\n")

  return tell


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--size", default="tiny", choices=SIZES)
  parser.add_argument("--scale", type=int, default=1, help="divide all lengths")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--transformers_python", help="that has it and torch")
  parser.add_argument("--tunix_python", help="that has google-tunix")
  parser.add_argument("--json", help="append one object a line to this file")
  flags = parser.parse_args()
  config = SIZES[flags.size]
  rate, speed = bandwidth(), peak(config.dtype)
  params = jax.jit(vlm.init, static_argnums=0)(config, jax.random.key(0))
  about = {"size": flags.size} | about_machine()
  about |= {"bandwidth": rate, "peak": speed}
  print(json.dumps(about))
  print(f"{'':46}" + "".join(f"{x:>14}" for x in COLUMNS.values()))
  tell = make_tell(line, about, flags.json)
  for case in cases(flags.size):
    case = shorter(case, flags.scale)
    record = measure(config, params, case, flags.repeats, rate, speed)
    tell(case, case.name, record)
  if flags.size == "tiny":
    pythons = {
      "transformers_generate": flags.transformers_python,
      "tunix_generate": flags.tunix_python,
    }
    peers = find_peers(pythons, config)
    for case in against_peers():
      case = shorter(case, flags.scale)
      for name, record in compare(config, params, case, peers, flags.repeats):
        tell(case, name, record)
    for peer in peers:
      peer.close()


if __name__ == "__main__":
  main()
