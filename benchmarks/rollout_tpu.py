"""Compiles the sampler's programs for TPUs, without a TPU.

  pip install 'jax[tpu]'
  python benchmarks/rollout_tpu.py --json benchmarks/results/rollout_tpu.jsonl

One line for each topology and program: what the TPU compiler made of prefill
and decode of Qwen2.5-VL-7B's decoder in bfloat16, 8 samples a prompt, prompts
of 1,200 tokens and answers of up to 848, cut over `tensor` as far as its key
heads allow and over `data` beyond. "kernels" counts calls of Pallas kernels:
prefill has splash attention, decode none (see `models/flash.py`).
"""

import argparse
import dataclasses
import json
import os
import time
from datetime import date
from functools import partial

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from jaxrl_mm import sharding  # noqa: E402
from jaxrl_mm.models import config as models  # noqa: E402
from jaxrl_mm.models import vlm  # noqa: E402
from jaxrl_mm.models.attention import Seats  # noqa: E402
from jaxrl_mm.models.param_axes import param_shardings  # noqa: E402
from jaxrl_mm.sampling import decode, weights  # noqa: E402
from jaxrl_mm.sampling.decode import Plan, Sampling  # noqa: E402
from jaxrl_mm.structs import Prompts  # noqa: E402

TOPOLOGIES = ("v5e:2x4", "v5p:2x2x1", "v6e:2x4")
SAMPLES, PROMPT, TOKENS, ROWS_A_SHARD = 8, 1200, 848, 64
SAMPLING = Sampling(
  samples_per_prompt=SAMPLES,
  max_tokens=TOKENS,
  end_token=-1,
  pad_token=0,
  image_token=-1,
)


def on_mesh(mesh, tree):
  """Shapes of arrays whose rows are cut over the batch axes."""

  def place(x):
    spec = sharding.RULES.spec("batch")
    if x.ndim == 5:  # Of a cache.
      spec = sharding.RULES.spec(None, "batch", "kv_heads")
    if x.ndim == 0:
      spec = PartitionSpec()
    laid = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=laid)

  return jax.tree.map(place, tree)


def arguments(config, mesh):
  """What prefill and decode are called with, as shapes on the mesh."""
  shards = sharding.batch_shards()
  rows, places = ROWS_A_SHARD * shards, ROWS_A_SHARD // SAMPLES * shards
  # Nothing can run on these devices, not even what makes zeros.
  shaped = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(shape, dtype)
  prompts = Prompts(
    shaped(places, PROMPT),
    shaped(places, PROMPT, dtype=bool),
    None,
    shaped(places),
  )
  slots = jax.eval_shape(
    lambda: decode.empty(config, SAMPLING, prompts, places, rows, TOKENS)
  )
  plan = Plan(
    fresh=shaped(rows, dtype=bool),
    row=shaped(rows),
    limit=shaped(rows),
    seats=Seats(shaped(places, SAMPLES), shaped(rows)),
    leave_at=shaped(),
  )
  params = jax.eval_shape(lambda: vlm.init(config, jax.random.key(0)))
  layout = param_shardings(mesh, params, weights.RULES)
  params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    params,
    layout,
  )
  key = on_mesh(mesh, jax.eval_shape(lambda: jax.random.key(0)))
  slots, plan, prompts = (on_mesh(mesh, x) for x in (slots, plan, prompts))
  one = on_mesh(mesh, shaped(shards))
  return {
    "prefill": (decode.prefill, (params, prompts, slots, one, one)),
    "decode": (
      partial(decode.decode, steps=32),
      (params, slots, plan, key),
    ),
  }


def compile_for(topology: str) -> list[dict]:
  """Compiles both programs for the devices of a topology."""
  devices = topologies.get_topology_desc(
    platform="tpu", topology_name=topology
  ).devices
  config = dataclasses.replace(
    models.qwen2_5_vl_7b(), vision=None, param_dtype="bfloat16"
  )
  tensor = min(len(devices), config.decoder.kv_heads)
  mesh = sharding.make_mesh(tensor=tensor, devices=devices)
  records = []
  with jax.set_mesh(mesh):
    for name, (program, shapes) in arguments(config, mesh).items():
      jitted = jax.jit(
        lambda *x, program=program: program(config, SAMPLING, *x),
        donate_argnums=1 if name == "decode" else 2,
      )
      start = time.perf_counter()
      compiled = jitted.lower(*shapes).compile()
      memory = compiled.memory_analysis()
      records.append(
        {
          "topology": topology,
          "device": devices[0].device_kind,
          "mesh": dict(mesh.shape),
          "program": name,
          "compile_seconds": time.perf_counter() - start,
          "kernels": compiled.as_text().count('"tpu_custom_call"'),
          "argument_bytes": memory.argument_size_in_bytes,
          "temporary_bytes": memory.temp_size_in_bytes,
        }
      )
  return records


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--topology", action="append", help="default: three")
  parser.add_argument("--json", help="append one object a line to this file")
  flags = parser.parse_args()
  about = {"jax": jax.__version__, "date": date.today().isoformat()}
  print(
    f"{'':24}{'compile s':>12}{'kernels':>10}{'GB held':>10}{'GB more':>10}"
  )
  for topology in flags.topology or TOPOLOGIES:
    for record in compile_for(topology):
      held, more = (
        record[f"{kind}_bytes"] / 1e9 for kind in ("argument", "temporary")
      )
      print(
        f"{topology + ' ' + record['program']:24}"
        f"{record['compile_seconds']:12.1f}{record['kernels']:10}"
        f"{held:10.2f}{more:10.2f}",
        flush=True,
      )
      if flags.json:
        with open(flags.json, "a") as file:
          file.write(json.dumps(about | record) + "\n")


if __name__ == "__main__":
  main()
