"""Does a run fit a TPU slice, and how fast can it be? Needs no TPU.

  pip install -e '.[tpu]'
  python -m benchmarks.fit configs/r1v2_38b.py --topology=v5p:4x4x8

Compiles every program of the run with the TPU compiler for chips that are not
there. Any value of the config can be changed, as in
`--config.policy.micro_batch=2`. `--only=policy` keeps the stages or programs
whose name has that in it, `--search` looks for the smallest slice that fits.

A program's time is the largest of three: its operations, its bytes of memory
(both by hand, see `arithmetic.py`) and its bytes between chips (read from what
the compiler made), each at the chip's full rate. A run takes longer.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

# Set before jax starts: it would look for a TPU, and for its metadata server.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
# Several may compile at once, for none holds a chip.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax  # noqa: E402
from absl import app, flags  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.extend.core import ClosedJaxpr  # noqa: E402
from jax.sharding import Mesh  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from benchmarks import hlo, stages, traced  # noqa: E402
from benchmarks.chips import CHIPS, GIB, Chip  # noqa: E402
from benchmarks.programs import Program  # noqa: E402
from jaxrl_mm import experiment, preflight, pytree, sharding  # noqa: E402
from jaxrl_mm.errors import InputError  # noqa: E402
from jaxrl_mm.experiment import Experiment  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5p:4x4x8", "kind:shape.")
_ANSWER = flags.DEFINE_integer("answer_tokens", 0, "Mean length; 0: longest.")
_ONLY = flags.DEFINE_string("only", "", "Part of 'stage program'.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the smallest slice.")
_JSON = flags.DEFINE_string("json", None, "Append one object a line here.")


class Fit(NamedTuple):
  """What one program takes of a chip.

  Attributes:
    program: which.
    arguments, temporary, beside: bytes; its arrays, the compiler's own, and
      what else lies there meanwhile.
    collectives: by kind.
    blame: (bytes, what it is) of the largest, largest first.
  """

  program: Program
  arguments: int
  temporary: int
  beside: int
  collectives: dict[str, hlo.Collective]
  blame: list[tuple[int, str]]

  @property
  def total(self) -> int:
    return self.arguments + self.temporary + self.beside


def make_mesh(e: Experiment, kind: str, shape: str) -> Mesh:
  """The mesh of a config on a slice that need not be there."""
  try:
    devices = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{kind}:{shape}"
    ).devices
  except Exception as error:  # libtpu's own kinds
    raise InputError(
      f"there is no slice {kind}:{shape} or no TPU compiler "
      f"({str(error).splitlines()[0]}); install jax[tpu], or choose "
      "a --topology such as v5p:4x4x8"
    ) from error
  sizes = e.mesh.data, e.mesh.fsdp, e.mesh.tensor
  mesh = sharding.make_mesh(*sizes, sequence=e.mesh.sequence, devices=devices)
  preflight.check_config(e, mesh.shape["data"] * mesh.shape["fsdp"])
  return mesh


def measure(program: Program, mesh: Mesh, chip: Chip) -> Fit:
  """Compiles a program and reads what it takes.

  One whose arrays alone fill the chip is not compiled.
  """
  arguments = program.arguments()
  known = _named({"an argument": arguments, "lies beside": program.beside})
  given = Fit(
    program,
    _bytes(arguments),
    0,
    _bytes(program.beside),
    {},
    sorted(known, reverse=True),
  )
  if given.total > chip.memory:
    return given
  with jax.set_mesh(mesh):
    program_traced = program.jitted.trace(*arguments, **program.fixed)
    lowered = program_traced.lower()
  try:
    return _compiled(lowered.compile(), given)
  except jax.errors.JaxRuntimeError as error:
    refusal = hlo.refusal(str(error))
    if refusal is None:
      raise
    return _refused(refusal, given, program_traced.jaxpr)


def _compiled(compiled: jax.stages.Compiled, given: Fit) -> Fit:
  m = compiled.memory_analysis()
  own = m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
  return given._replace(
    # Those it never reads are not counted there, and lie on the chip too.
    arguments=max(m.argument_size_in_bytes, given.arguments),
    temporary=own + m.generated_code_size_in_bytes,
    collectives=hlo.collectives(compiled.as_text()),
  )


def _refused(refusal: hlo.Refusal, given: Fit, jaxpr: ClosedJaxpr) -> Fit:
  counted = given.arguments if refusal.with_arguments else 0
  largest = [
    (size, f"{shape} made in {name or 'the program'}")
    for size, shape, name in refusal.largest
  ]
  return given._replace(
    temporary=max(refusal.used - counted, 0),
    blame=sorted(largest + given.blame, reverse=True)
    if largest
    else traced.largest(jaxpr),
  )


def _bytes(tree: Any) -> int:
  return sum(_of_chip(leaf) for leaf in jax.tree.leaves(tree))


def _of_chip(leaf) -> int:
  """Bytes of an array on one chip."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return 8
  shape = (
    leaf.shape
    if leaf.sharding is None
    else leaf.sharding.shard_shape(leaf.shape)
  )
  return math.prod(shape) * leaf.dtype.itemsize


def _named(parts: dict[str, Any]) -> list[tuple[int, str]]:
  """(bytes of a chip, what it is) of every array, by what it is there for."""
  return [
    (_of_chip(leaf), f"{name} {tuple(leaf.shape)}, {what}")
    for what, tree in parts.items()
    for name, leaf in pytree.named_leaves(tree)
  ]


class Times(NamedTuple):
  """Seconds of one call at the chip's full rate."""

  compute: float
  memory: float
  network: float


def times(fit: Fit, chip: Chip, chips: int) -> Times:
  """The three bounds of a program."""
  moved = sum(c.bytes for c in fit.collectives.values())
  work = fit.program.work
  return Times(
    work.flops / chips / chip.flops,
    work.bytes / chips / chip.bandwidth,
    moved / chip.network,
  )


def describe(fit: Fit, chip: Chip, chips: int) -> dict[str, Any]:
  """One object of the result."""
  bounds = times(fit, chip, chips)
  return {
    "stage": fit.program.stage,
    "program": fit.program.name,
    "fits": fit.total <= chip.memory,
    "arguments_bytes": fit.arguments,
    "temporary_bytes": fit.temporary,
    "beside_bytes": fit.beside,
    "chip_bytes": chip.memory,
    "flops": fit.program.work.flops,
    "bytes": fit.program.work.bytes,
    "seconds": max(bounds),
    "bound": bounds._fields[bounds.index(max(bounds))],
    "calls": fit.program.calls,
    "tokens": fit.program.tokens,
    "collectives": {k: c._asdict() for k, c in fit.collectives.items()},
    "largest": [f"{n / GIB:.2f} GiB {what}" for n, what in fit.blame[:3]],
  }


_HEAD = (
  f"{'stage':16}{'program':14}{'fits':>5}{'args':>8}{'temp':>8}{'beside':>8}"
  f"{'GiB':>8}{'TFLOP':>11}{'TB':>9}{'s a call':>10} {'bound':8}{'calls':>7}"
)


def show(found: dict[str, Any]) -> None:
  """A program's line, its collectives, and whom to blame."""
  gib = [
    found[f"{n}_bytes"] / GIB for n in ("arguments", "temporary", "beside")
  ]
  print(
    f"{found['stage']:16}{found['program']:14}"
    f"{'yes' if found['fits'] else 'NO':>5}"
    + "".join(f"{x:8.2f}" for x in (*gib, sum(gib)))
    + f"{found['flops'] / 1e12:11.1f}{found['bytes'] / 1e12:9.2f}"
    f"{found['seconds']:10.4f} {found['bound']:8}{found['calls']:7.0f}"
  )
  for kind, c in found["collectives"].items():
    print(f"  {kind}: {c['times']} times, {c['bytes'] / GIB:.2f} GiB a chip")
  if not found["fits"]:
    print("  largest: " + ";\n           ".join(found["largest"]))
    print(f"  would help: {found['settings']}", flush=True)


def show_steps(all_found: list[dict[str, Any]], chips: int) -> None:
  """Seconds a step of each stage, at least, and tokens a second and chip."""
  for stage in dict.fromkeys(f["stage"] for f in all_found):
    parts = [f for f in all_found if f["stage"] == stage]
    seconds = sum(f["calls"] * f["seconds"] for f in parts)
    tokens = max(f["tokens"] for f in parts)
    if seconds and tokens:
      print(
        f"{stage}: at least {seconds:.1f} s a step, at most "
        f"{tokens / seconds / chips:.0f} tokens/s a chip"
      )


def fits(
  e: Experiment, kind: str, shape: str, answer_tokens: int, only: str
) -> Iterator[dict[str, Any]]:
  """Every program of a run on one slice."""
  mesh, chip = make_mesh(e, kind, shape), CHIPS[kind]
  for program in stages.of_run(e, mesh, answer_tokens):
    if only in f"{program.stage} {program.name}":
      found = describe(measure(program, mesh, chip), chip, mesh.size)
      yield found | {
        "topology": f"{kind}:{shape}",
        "chips": mesh.size,
        "settings": program.settings,
      }


def search(e: Experiment, kind: str, answer_tokens: int, only: str) -> str:
  """The first slice on which everything fits, "" if there is none."""
  for shape in CHIPS[kind].slices:
    try:
      for found in fits(e, kind, shape, answer_tokens, only):
        if not found["fits"]:
          name = f"{found['stage']} {found['program']}"
          print(f"{kind}:{shape}: {name} does not fit", flush=True)
          break
      else:
        return shape
    except InputError as error:
      print(f"{kind}:{shape}: {error}", flush=True)
  return ""


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
  if kind not in CHIPS:
    sys.exit(f"error: --topology has no '{kind}'; known are {', '.join(CHIPS)}")
  answer_tokens = _ANSWER.value or e.data.completion_tokens
  try:
    if _SEARCH.value:
      shape = search(e, kind, answer_tokens, _ONLY.value)
      print(f"smallest slice: {kind}:{shape}" if shape else "none fits")
      return
    print(_HEAD)
    all_found = []
    for found in fits(e, kind, shape, answer_tokens, _ONLY.value):
      show(found)
      all_found.append(found)
      if _JSON.value:
        with open(_JSON.value, "a") as file:
          told = {"config": flags.FLAGS["config"].config_filename} | found
          file.write(json.dumps(told) + "\n")
  except InputError as error:
    sys.exit(f"error: {error}")
  show_steps(all_found, all_found[0]["chips"] if all_found else 1)
  if not all(f["fits"] for f in all_found):
    sys.exit(1)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=parse)
