"""What the text of a compiled program and of the compiler's refusal say."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

_KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "s4": 4}
_SHAPE = re.compile(r"\b(pred|bf16|f16|f32|f64|[su]\d+|f8\w+)\[([\d,]*)\]")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_CALL = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(
  r"branch_computations=\{(.*?)\}"
  r"|true_computation=([^,\s]+), false_computation=([^,\s]+)"
)
_WHILE = re.compile(r"condition=%?([\w.\-]+)")
_BOUND = re.compile(r"%([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_OP = re.compile(r"= (.*?) ([\w\-]+)\(")


class Collective(NamedTuple):
  """Collectives of one kind: how often in a call, and bytes they give back."""

  times: int
  bytes: int


def collectives(text: str, rounds: int = 1) -> dict[str, Collective]:
  """Of a compiled program: loops as often as they are known to run, and of the
  branches of a conditional the one that moves most.

  Args:
    text: of the compiled module, for one device.
    rounds: of a loop whose end is not in the text.
  """
  bodies, entry = _computations(text)

  @cache
  def within(name: str) -> Counter:
    total = Counter()
    for line in bodies.get(name, ()):
      total += _of_line(line)
      for others, times in _called(bodies, line, rounds):
        most = max((within(other) for other in others), key=_moved)
        total += Counter({key: n * times for key, n in most.items()})
    return total

  found = within(entry)
  return {
    kind: Collective(found[kind, "times"], found[kind, "bytes"])
    for kind in _KINDS
    if found[kind, "times"]
  }


def _of_line(line: str) -> Counter:
  """(kind, "times" or "bytes") of one operation."""
  op = _OP.search(line)
  kind = op[2].removesuffix("-start") if op else ""
  if kind not in _KINDS:
    return Counter()
  size = _result_bytes(op[1], op[2])
  return Counter({(kind, "times"): 1, (kind, "bytes"): size})


def _moved(found: Counter) -> int:
  return sum(n for (_, what), n in found.items() if what == "bytes")


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """The lines of each computation, and which is the first to run."""
  bodies, name, entry = {}, "", ""
  for line in text.splitlines():
    if head := _HEAD.match(line):
      name = head[1]
      bodies[name] = []
      entry = name if line.startswith("ENTRY") else entry
    elif name:
      bodies[name].append(line)
  return bodies, entry


def _called(
  bodies: dict[str, list[str]], line: str, rounds: int
) -> Iterator[tuple[list[str], int]]:
  """(computations of which an operation runs one, how often)."""
  if branches := _BRANCHES.search(line):
    listed = branches[1] or f"{branches[2]}, {branches[3]}"
    yield listed.replace("%", "").split(", "), 1
  if condition := _WHILE.search(line):
    rounds = _bound(bodies.get(condition[1], ())) or rounds
  for name in _CALL.findall(line):
    yield [name], rounds if condition else 1


def _bound(condition: Sequence[str]) -> int:
  """The constant that a loop's counter is held against; 0 if there is none."""
  bounds = dict(found for line in condition for found in _BOUND.findall(line))
  for line in condition:
    if "direction=LT" in line:
      for name, bound in bounds.items():
        if f"%{name})" in line:
          return int(bound)
  return 0


def _result_bytes(shapes: str, op: str) -> int:
  """Bytes of the result; that of an asynchronous start stands last."""
  sizes = [
    math.prod(int(n) for n in size.split(",") if n) * _bits(kind) // 8
    for kind, size in _SHAPE.findall(shapes)
  ]
  if not sizes:
    return 0
  return max(sizes) if op.endswith("-start") else sum(sizes)


def _bits(kind: str) -> int:
  return _BITS.get(kind) or int(re.sub(r"^[a-z]+(\d+).*", r"\1", kind))


class Refusal(NamedTuple):
  """Why a program does not fit.

  Attributes:
    used: bytes it would need.
    with_arguments: whether those of its arguments are among them.
    largest: (bytes, shape, where in the source it is made), largest first.
  """

  used: int
  with_arguments: bool
  largest: list[tuple[int, str, str]]


_ALLOCATION = re.compile(
  r"Size: ([\d.]+)([KMGT]?)\n"
  r"(?:\s+Operator: op_name=\"(.*?)\".*\n)?"
  r"(?:\s+Shape: (\S+))?"
)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def refusal(message: str) -> Refusal | None:
  """The compiler's "out of memory" taken apart; None if it is another error."""
  used = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
  own = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", message)
  if not (used or own):
    return None
  parts = _ALLOCATION.findall(message)
  largest = [(_size(n, u), shape, name) for n, u, name, shape in parts]
  largest = sorted(set(largest), reverse=True)
  return Refusal(_size(*(used or own).groups()), bool(used), largest)


def _size(number: str, unit: str) -> int:
  return int(float(number) * _UNITS[unit])
