"""What a program takes of a chip: compiled, and read."""

import math
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh

from benchmarks import hlo, traced
from benchmarks.chips import GIB, Chip
from benchmarks.programs import Program
from jaxrl_mm import pytree

# By what the compiler needs, from seconds to minutes.
_SOONEST = (
  "reshard",
  "resize",
  "decode",
  "prefill",
  "reward score",
  "log-probs",
  "train step",
)


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
  def parts(self) -> tuple[int, int, int]:
    return self.arguments, self.temporary, self.beside

  @property
  def total(self) -> int:
    return sum(self.parts)


def arrays(program: Program) -> Fit:
  """What its arrays take, and nothing is compiled for."""
  arguments = program.arguments()
  known = _named({"an argument": arguments, "lies beside": program.beside})
  return Fit(
    program,
    _bytes(arguments),
    0,
    _bytes(program.beside),
    {},
    sorted(known, reverse=True),
  )


def quickest_refusal(programs: list[Program], chip: Chip) -> list[Program]:
  """First those whose arrays alone are too large, last what compiles long."""

  def cost(program):
    return arrays(program).total <= chip.memory, _SOONEST.index(program.name)

  return sorted(programs, key=cost)


def measure(program: Program, mesh: Mesh, chip: Chip) -> Fit:
  """Compiles a program and reads what it takes.

  One whose arrays alone fill the chip is not compiled.
  """
  given = arrays(program)
  if given.total > chip.memory:
    return given
  with jax.set_mesh(mesh):
    program_traced = program.jitted.trace(*program.arguments(), **program.fixed)
    lowered = program_traced.lower()
  try:
    found = _compiled(lowered.compile(), given)
  except jax.errors.JaxRuntimeError as error:
    refusal = hlo.refusal(str(error))
    if refusal is None:
      raise
    return _refused(refusal, given, program_traced.jaxpr)
  if found.total > chip.memory and found.temporary > max(given.parts):
    found = found._replace(blame=traced.largest(program_traced.jaxpr))
  return found


def _compiled(compiled: jax.stages.Compiled, given: Fit) -> Fit:
  m = compiled.memory_analysis()
  own = m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
  return given._replace(
    # Those it never reads are not counted there, and lie on the chip too.
    arguments=max(m.argument_size_in_bytes, given.arguments),
    temporary=own + m.generated_code_size_in_bytes,
    collectives=hlo.collectives(compiled.as_text(), given.program.rounds),
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
    "chips": chips,
    "calls": fit.program.calls,
    "tokens": fit.program.tokens,
    "collectives": {k: c._asdict() for k, c in fit.collectives.items()},
    "largest": [f"{n / GIB:.2f} GiB {what}" for n, what in fit.blame[:3]],
    "settings": fit.program.settings,
  }
