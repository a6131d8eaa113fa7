"""Does a run fit a TPU slice, and how fast can it be? Needs no TPU.

  pip install -e '.[tpu]'
  python -m benchmarks.fit configs/r1v2_38b.py --topology=v5p:4x4x8

Compiles every program of the run with the TPU compiler for chips that are not
there. Any value of the config can be changed, as in
`--config.policy.micro_batch=2`. `--only='policy|log-probs'` keeps what matches
of "stage program", `--search` looks for the smallest slice that fits: what is
known without the compiler comes first, train steps last. With
`JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1` in the environment the compiler takes a
third of the time, and memory comes out the same to a few per cent.

A program's time is the largest of three: its operations, its bytes of memory
(both by hand, see `arithmetic.py`) and its bytes between chips (read from what
the compiler made), each at the chip's full rate. A run takes longer.
"""

import datetime
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

# Set before jax starts: it would look for a TPU, and for its metadata server.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
# Several may compile at once, for none holds a chip.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

from absl import app, flags  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from benchmarks import compiled, stages  # noqa: E402
from benchmarks.chips import CHIPS, GIB  # noqa: E402
from benchmarks.programs import Program  # noqa: E402
from jaxrl_mm import experiment, preflight, sharding  # noqa: E402
from jaxrl_mm.errors import InputError  # noqa: E402
from jaxrl_mm.experiment import Experiment  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5p:4x4x8", "kind:shape.")
_ANSWER = flags.DEFINE_integer("answer_tokens", 0, "Mean length; 0: longest.")
_ONLY = flags.DEFINE_string("only", "", "Regex: 'stage program'.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the smallest slice.")
_JSON = flags.DEFINE_string("json", None, "Append one object a line here.")


def make_mesh(e: Experiment, kind: str, shape: str) -> Mesh:
  """The mesh of a config on a slice that need not be there."""
  try:
    devices = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{kind}:{shape}"
    ).devices
  except Exception as error:  # libtpu's own kinds
    raise InputError(
      f"there is no slice {kind}:{shape} ({str(error).splitlines()[0]}); "
      "choose a --topology such as v5p:4x4x8"
    ) from error
  sizes = e.mesh.data, e.mesh.fsdp, e.mesh.tensor
  mesh = sharding.make_mesh(*sizes, sequence=e.mesh.sequence, devices=devices)
  preflight.check_config(e, mesh.shape["data"] * mesh.shape["fsdp"])
  return mesh


_HEAD = (
  f"{'stage':20}{'program':14}{'fits':>5}{'args':>8}{'temp':>8}{'beside':>8}"
  f"{'GiB':>8}{'TFLOP':>11}{'TB':>9}{'s a call':>10} {'bound':8}{'calls':>7}"
)


def show(found: dict[str, Any]) -> None:
  """A program's line, its collectives, and whom to blame."""
  gib = [
    found[f"{n}_bytes"] / GIB for n in ("arguments", "temporary", "beside")
  ]
  print(
    f"{found['stage']:20}{found['program']:14}"
    f"{'yes' if found['fits'] else 'NO':>5}"
    + "".join(f"{x:8.2f}" for x in (*gib, sum(gib)))
    + f"{found['flops'] / 1e12:11.1f}{found['bytes'] / 1e12:9.2f}"
    f"{found['seconds']:10.4f} {found['bound']:8}{found['calls']:7.0f}"
  )
  for kind, c in found["collectives"].items():
    print(f"  {kind}: {c['times']} times, {c['bytes'] / GIB:.2f} GiB a chip")
  if not found["fits"]:
    if not found["temporary_bytes"]:
      print("  not compiled: its arrays alone are too large")
    print("  largest: " + ";\n           ".join(found["largest"]))
    print(f"  would help: {found['settings']}")
  sys.stdout.flush()


def show_steps(all_found: list[dict[str, Any]], whole: bool) -> None:
  """What a step of each stage takes, and tokens a second and chip.

  Args:
    all_found: of the programs.
    whole: whether they are all that a step runs.
  """
  of = "a step, where pairs are made or questions asked a batch of these"
  print(f"Of {of}" + ("" if whole else ", the programs above alone") + ":")
  for stage in dict.fromkeys(f["stage"] for f in all_found):
    parts = [f for f in all_found if f["stage"] == stage]
    seconds = sum(f["calls"] * f["seconds"] for f in parts)
    tokens = max(f["tokens"] for f in parts)
    if seconds and tokens:
      rate = tokens / seconds / parts[0]["chips"]
      told = f"{seconds:.1f} s or more, {rate:.0f} tokens/s a chip or fewer"
      print(f"  {stage}: {told}")


def write(found: dict[str, Any], path: str) -> None:
  """Appends the line of a program, with what it was compiled by."""
  by = {
    "config": flags.FLAGS["config"].config_filename,
    "changed": [x for x in sys.argv if x.startswith("--config.")],
    "date": datetime.date.today().isoformat(),
    **{name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
  }
  with open(path, "a") as file:
    file.write(json.dumps(by | found) + "\n")


def programs_on(e: Experiment, mesh: Mesh) -> list[Program]:
  """Those that the flags ask for."""
  answer_tokens = _ANSWER.value or e.data.completion_tokens
  programs = list(stages.of_run(e, mesh, answer_tokens))
  name = lambda program: f"{program.stage} {program.name}"
  asked = [p for p in programs if re.search(_ONLY.value, name(p))]
  if not asked:
    known = ", ".join(map(name, programs))
    raise InputError(f"--only '{_ONLY.value}' matches none of {known}")
  return asked


def fits(
  e: Experiment, mesh: Mesh, kind: str, shape: str, search: bool = False
) -> Iterator[dict[str, Any]]:
  """Shows, writes and gives the programs on one slice, one by one."""
  chip, programs = CHIPS[kind], programs_on(e, mesh)
  if search:
    programs = compiled.quickest_refusal(programs, chip)
  print(_HEAD, flush=True)
  for program in programs:
    measured = compiled.measure(program, mesh, chip)
    found = compiled.describe(measured, chip, mesh.size)
    found["topology"] = f"{kind}:{shape}"
    show(found)
    if _JSON.value:
      write(found, _JSON.value)
    yield found


def smallest(e: Experiment, kind: str) -> list[dict[str, Any]]:
  """The programs on the first slice that fits them, empty if none does."""
  for shape in CHIPS[kind].slices:
    print(f"{kind}:{shape}", flush=True)
    try:
      mesh = make_mesh(e, kind, shape)
    except InputError as error:  # too few chips for the mesh, perhaps
      print(error, flush=True)
      continue
    all_found = []
    for found in fits(e, mesh, kind, shape, search=True):
      all_found.append(found)
      if not found["fits"]:
        break
    else:
      return all_found
  return []


def describe_slice(found: dict[str, Any] | None) -> str:
  """Its topology, and the type by which gcloud knows it."""
  if found is None:
    return "none fits"
  chip = CHIPS[found["topology"].partition(":")[0]]
  return f"{found['topology']}, {chip.name}-{found['chips'] * chip.cores}"


def parse(argv: list[str]) -> list[str]:
  """The config may stand without its flag."""
  named = [
    f"--config={a}" if i and not a.startswith("-") else a
    for i, a in enumerate(argv)
  ]
  sys.argv = named  # where ml_collections looks for the file
  return flags.FLAGS(named)


def main(_: list[str]) -> None:
  """Prints the table, and writes it."""
  e = experiment.from_config(_CONFIG.value)
  kind, _, shape = _TOPOLOGY.value.partition(":")
  if not importlib.util.find_spec("libtpu"):
    sys.exit("error: there is no TPU compiler; pip install 'jax[tpu]'")
  if kind not in CHIPS:
    sys.exit(f"error: --topology has no '{kind}'; known are {', '.join(CHIPS)}")
  try:
    if _SEARCH.value:
      all_found = smallest(e, kind)
    else:
      all_found = list(fits(e, make_mesh(e, kind, shape), kind, shape))
  except InputError as error:
    sys.exit(f"error: {error}")
  if any(found["tokens"] for found in all_found):
    show_steps(all_found, whole=not _ONLY.value)
  if _SEARCH.value:
    print("smallest slice:", *map(describe_slice, all_found[:1] or [None]))
  if not all_found or not all(found["fits"] for found in all_found):
    sys.exit(1)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=parse)
