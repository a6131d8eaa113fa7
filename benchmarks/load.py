"""How fast a checkpoint comes from disk onto a mesh, and what memory it takes.

  python benchmarks/load.py --json benchmarks/results/load_cpu.jsonl

Writes a text model in bfloat16 with the shapes of Qwen2 into a temporary
folder, several shards of safetensors, and loads it onto eight CPU devices cut
over fsdp and tensor. "dd" reads the same files with `dd bs=4M` and throws them
away: the floor. Cold means that the files were pushed out of the page cache
first (posix_fadvise), which a hypervisor's own cache may still serve.

"anonymous" is the largest RssAnon of /proc/self/status, sampled every 20 ms,
less what it was before the first load: memory that the system cannot drop. CPU
devices live in it, so it holds the loaded weights; "staging" is what is left
without them. Mapped pages of the files do not count; the system drops them at
will.
"""

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from jaxrl_mm import sharding  # noqa: E402
from jaxrl_mm.models import vlm  # noqa: E402
from jaxrl_mm.models.config import DecoderConfig, ModelConfig  # noqa: E402
from jaxrl_mm.models.huggingface import load, safetensors  # noqa: E402
from jaxrl_mm.models.huggingface.tables import Entry, layouts  # noqa: E402
from jaxrl_mm.models.param_axes import param_shardings  # noqa: E402

_LAYER = "model.layers.{l}."
ENTRIES = (
  Entry("embedder/table", "model.embed_tokens.weight", "v d = v d"),
  Entry("embedder/head", "lm_head.weight", "v d = v d"),
  Entry("decoder/norm/scale", "model.norm.weight", "d = d"),
) + tuple(
  Entry(f"decoder/layers/{ours}", _LAYER + theirs, axes)
  for ours, theirs, axes in (
    ("norm1/scale", "input_layernorm.weight", "l d = d"),
    ("norm2/scale", "post_attention_layernorm.weight", "l d = d"),
    ("attention/q/kernel", "self_attn.q_proj.weight", "l d h e = (h e) d"),
    ("attention/q/bias", "self_attn.q_proj.bias", "l h e = (h e)"),
    ("attention/k/kernel", "self_attn.k_proj.weight", "l d h e = (h e) d"),
    ("attention/k/bias", "self_attn.k_proj.bias", "l h e = (h e)"),
    ("attention/v/kernel", "self_attn.v_proj.weight", "l d h e = (h e) d"),
    ("attention/v/bias", "self_attn.v_proj.bias", "l h e = (h e)"),
    ("attention/out/kernel", "self_attn.o_proj.weight", "l h e d = d (h e)"),
    ("gate/kernel", "mlp.gate_proj.weight", "l d f = f d"),
    ("up/kernel", "mlp.up_proj.weight", "l d f = f d"),
    ("down/kernel", "mlp.down_proj.weight", "l f d = d f"),
  )
)


def model(layers: int, width: int, vocab: int, param_dtype: str) -> ModelConfig:
  """Qwen2 with heads of 128 and the proportions of its 1.5B."""
  decoder = DecoderConfig(
    layers=layers,
    width=width,
    heads=width // 128,
    kv_heads=max(2, width // 768),
    head_dim=128,
    mlp=width * 35 // 6 // 128 * 128,
    vocab=vocab,
  )
  return ModelConfig(None, decoder, param_dtype=param_dtype)


def write(folder: Path, shapes: Any, shards: int) -> None:
  """Random bits that are finite bfloat16, in files of about equal size."""
  tensors = {
    name: how.shape
    for how in layouts(ENTRIES, shapes).values()
    for name in how.names.values()
  }
  rng, names, places = np.random.default_rng(0), sorted(tensors), {}
  draw = lambda shape: rng.integers(0, 0x7F00, shape, np.uint16).view(
    jnp.bfloat16
  )
  for i in range(shards):
    own = {name: tensors[name] for name in names[i::shards]}
    file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
    arrays = (draw(shape) for shape in own.values())
    leaves = {n: jax.ShapeDtypeStruct(s, jnp.bfloat16) for n, s in own.items()}
    safetensors.write(folder / file, leaves, arrays)
    places |= dict.fromkeys(own, file)
  index = json.dumps({"metadata": {}, "weight_map": places})
  (folder / safetensors.INDEX).write_text(index)


def forget(files: list[Path]) -> None:
  """Pushes clean pages of the files out of the page cache."""
  for path in files:
    with open(path, "rb") as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def dd(files: list[Path]) -> None:
  for path in files:
    subprocess.run(
      ["dd", f"if={path}", "of=/dev/null", "bs=4M", "status=none"], check=True
    )


def anonymous() -> int:
  """Bytes of this process that the system cannot drop."""
  status = Path("/proc/self/status").read_text()
  return int(status.split("RssAnon:")[1].split()[0]) * 1024


def measure(call: Callable[[], Any]) -> tuple[float, int, Any]:
  """Seconds, the largest anonymous memory in bytes, the result."""
  peak, done = [0], threading.Event()

  def sample():
    while not done.wait(0.02):
      peak[0] = max(peak[0], anonymous())

  thread = threading.Thread(target=sample)
  thread.start()
  start = time.perf_counter()
  result = jax.block_until_ready(call())
  seconds = time.perf_counter() - start
  done.set()
  thread.join()
  return seconds, max(peak[0], anonymous()), result


def records(
  folder: Path, config: ModelConfig, mesh: jax.sharding.Mesh, repeats: int
) -> Iterator[dict[str, Any]]:
  """Cold and warm, the floor and then the load, the best of `repeats`."""
  shapes = jax.eval_shape(lambda k: vlm.init(config, k), jax.random.key(0))
  shardings = param_shardings(mesh, shapes)
  paths = sorted(folder.glob("*.safetensors"))
  load_all = lambda: load.load_tree(
    safetensors.scan(folder), ENTRIES, shapes, shardings
  )
  before = anonymous()
  for kind in ("cold", "warm"):
    floors, loads = [], []
    for _ in range(repeats):
      for times, call in ((floors, lambda: dd(paths)), (loads, load_all)):
        if kind == "cold":
          forget(paths)
        seconds, peak, result = measure(call)
        held = sum(x.nbytes for x in jax.tree.leaves(result))
        del result
        times.append((seconds, peak, held))
    yield {
      "cache": kind,
      "file_bytes": sum(path.stat().st_size for path in paths),
      "floor_seconds": min(floors)[0],
      "seconds": min(loads)[0],
      "loaded_bytes": loads[0][2],
      "peak_anonymous_bytes": max(peak for _, peak, _ in loads) - before,
    }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--layers", type=int, default=16, help="L")
  parser.add_argument("--width", type=int, default=1536, help="D")
  parser.add_argument("--vocab", type=int, default=100_352, help="V")
  parser.add_argument("--shards", type=int, default=4)
  parser.add_argument("--fsdp", type=int, default=4)
  parser.add_argument("--tensor", type=int, default=2)
  parser.add_argument("--param_dtype", default="bfloat16")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--folder", help="where to write the files")
  parser.add_argument("--json", help="append one object a line to this file")
  flags = parser.parse_args()
  config = model(flags.layers, flags.width, flags.vocab, flags.param_dtype)
  mesh = sharding.make_mesh(-1, flags.fsdp, flags.tensor)
  shapes = jax.eval_shape(lambda k: vlm.init(config, k), jax.random.key(0))
  print(
    f"jax {jax.__version__}, {os.cpu_count()} cores, mesh {dict(mesh.shape)}, "
    f"bfloat16 -> {flags.param_dtype}"
  )
  load_average = os.getloadavg()[0]  # above 0, others used the cores too
  head = "GB", "dd MB/s", "MB/s", "x dd", "anonymous GB", "staging GB"
  print(f"{'':6}" + "".join(f"{x:>14}" for x in head))
  with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
    write(Path(folder), shapes, flags.shards)
    for record in records(Path(folder), config, mesh, flags.repeats):
      size, staging = record["file_bytes"], record["peak_anonymous_bytes"]
      staging -= record["loaded_bytes"]
      numbers = (
        size / 1e9,
        size / 1e6 / record["floor_seconds"],
        size / 1e6 / record["seconds"],
        record["seconds"] / record["floor_seconds"],
        record["peak_anonymous_bytes"] / 1e9,
        staging / 1e9,
      )
      print(f"{record['cache']:6}" + "".join(f"{x:14.2f}" for x in numbers))
      if flags.json:
        about = {
          "device": jax.devices()[0].device_kind,
          "cores": os.cpu_count(),
          "load_average": load_average,
          "jax": jax.__version__,
          "mesh": dict(mesh.shape),
          "param_dtype": flags.param_dtype,
        }
        with open(flags.json, "a") as file:
          file.write(json.dumps(record | about) + "\n")


if __name__ == "__main__":
  main()
