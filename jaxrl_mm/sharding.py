"""Meshes, and the table from logical axes to mesh axes.

A model names what an axis *is* (`embed`, `heads`, ...), `Rules` says which
mesh axis holds it. With no mesh set everything here is the identity, so the
same functions run on one laptop core and on a pod.
"""

import dataclasses
import math
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)
from jaxtyping import Array, Bool, Float, Int

from jaxrl_mm import pytree
from jaxrl_mm.errors import InputError

BATCH_AXES = ("data", "fsdp")
# A process that is not heard of for so long has died, and one that ended with
# an error waits so long for the others: then they are ended.
SILENCE_SECONDS = 30
# Bytes of rows that a device gets from others at a time, or one row of each if
# that is more. Waiting for each other is dear: small rows move together.
MOVED_BYTES = 2**26
MeshAxis = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Rules:
  """Logical axis -> mesh axis. An unknown name is an AttributeError."""

  batch: MeshAxis = BATCH_AXES
  length: MeshAxis = "sequence"
  layer: MeshAxis = None
  embed: MeshAxis = ("fsdp", "sequence")
  heads: MeshAxis = "tensor"
  kv_heads: MeshAxis = "tensor"
  mlp: MeshAxis = "tensor"
  vocab: MeshAxis = "tensor"

  def spec(self, *axes: str | None) -> PartitionSpec:
    """`spec('layer', 'mlp')` -> `P(None, 'tensor')`."""
    placed = [None if a is None else getattr(self, a) for a in axes]
    used = [m for p in placed if p for m in ((p,) if isinstance(p, str) else p)]
    if len(set(used)) != len(used):
      raise ValueError(f"a mesh axis is used twice: {axes} -> {placed}")
    return PartitionSpec(*placed)


RULES = Rules()


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  devices: Sequence[jax.Device] | None = None,
  *,
  sequence: int = 1,
) -> Mesh:
  """A mesh with axes data, fsdp, sequence, tensor.

  One size may be -1: what is left.
  """
  devices = jax.devices() if devices is None else devices
  sizes = {"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor}
  asked = " x ".join(f"{name} {n}" for name, n in sizes.items())
  known = math.prod(n for n in sizes.values() if n != -1)
  free = [name for name, n in sizes.items() if n == -1]
  if len(free) == 1 and known > 0:
    sizes[free[0]] = len(devices) // known
  if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
    raise InputError(
      f"config.mesh asks for {asked} devices and there are {len(devices)}; "
      "make the product equal, or set one axis to -1"
    )
  # `jax.make_mesh` asks that each axis takes whole axes of a TPU slice.
  grid = mesh_utils.create_device_mesh(
    tuple(sizes.values()), devices, allow_split_physical_axes=True
  )
  return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def batch_shards() -> int:
  """Into how many parts the mesh in use cuts the batch axis."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape.get(name, 1) for name in BATCH_AXES)


def length_shards() -> int:
  """Into how many parts the mesh in use cuts the tokens of a row."""
  return jax.sharding.get_abstract_mesh().shape.get(RULES.length, 1)


def constrain(x: Array, *axes: str | None) -> Array:
  """Pins the layout of `x` by logical axes; the identity without a mesh.

  Tokens that the mesh does not divide stay whole: one that is decoded cannot
  be cut over `sequence`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  cut = mesh.shape.get(RULES.length, 0)
  whole = lambda axis, size: axis == "length" and (not cut or size % cut)
  axes = [None if whole(*pair) else pair[0] for pair in zip(axes, x.shape)]
  return jax.lax.with_sharding_constraint(x, RULES.spec(*axes))


def constrain_rows(tree: Any) -> Any:
  """Cuts the leading axis of every leaf over the batch axes of the mesh."""
  return jax.tree.map(
    lambda x: constrain(x, "batch", *[None] * (x.ndim - 1)), tree
  )


def take_rows(x: Array, index: Array) -> Array:
  """`x[index]` along the leading axis, each batch shard from its own rows.

  Args:
    x: [B, ...].
    index: [N] numbers within a shard, cut over the shards as `x` is.
  """
  shards = batch_shards()
  split = lambda y: y.reshape(shards, -1, *y.shape[1:])
  taken = jax.vmap(lambda x, i: x[i])(split(x), split(index))
  return taken.reshape(-1, *x.shape[1:])


def put_rows(x: Array, index: Array, y: Array) -> Array:
  """`x` with row `index[n]` replaced by `y[n]`; the reverse of `take_rows`.

  Args:
    x: [B, ...].
    index: [N] numbers within a shard; rows with a number beyond it are dropped.
    y: [N, ...].
  """
  shards = batch_shards()
  split = lambda y: y.reshape(shards, -1, *y.shape[1:])
  put = jax.vmap(lambda x, i, y: x.at[i].set(y, mode="drop"))
  return put(split(x), split(index), split(y)).reshape(x.shape)


def gather_rows(tree: Any, index: Int[Array, " N"]) -> Any:
  """`x[index]` of every leaf, from whichever shard has the row.

  The same bits, but of other rows than its own a device has no more at a time
  than `MOVED_BYTES`, or one for each shard where they are larger; the compiler
  would bring all N to every device.

  Args:
    tree: leaves [B, ...].
    index: numbers of rows, known to all devices.
  """
  axes, shards = _rows_cut(tree, index)
  if shards == 1:
    return jax.tree.map(lambda x: x[index], tree)
  few = _at_a_time(tree, index, shards)

  def of_shard(tree, index):
    held, here = jax.tree.leaves(tree)[0].shape[0], jax.lax.axis_index(axes)

    def few_for_each(wanted):
      sent = jax.lax.map(lambda i: _row(tree, i), wanted.reshape(-1) % held)
      swap = lambda x: jax.lax.all_to_all(x, axes, 0, 0, tiled=True)
      got = jax.tree.map(swap, sent)
      place = wanted[here] // held * few + jnp.arange(few)
      return jax.lax.map(lambda i: _row(got, i), place)

    wanted = jnp.moveaxis(index.reshape(shards, -1, few), 1, 0)
    rows = jax.lax.map(few_for_each, wanted)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

  cut, whole = PartitionSpec(axes), PartitionSpec()
  return jax.shard_map(of_shard, in_specs=(cut, whole), out_specs=cut)(
    tree, index
  )


def scatter_rows(tree: Any, index: Int[Array, " N"], new: Any) -> Any:
  """Every leaf with row `index[n]` replaced by row n of `new`, on any shard.

  The reverse of `gather_rows`, and as sparing.

  Args:
    tree: leaves [B, ...].
    index: numbers of rows, known to all devices; none twice, but for B and
      more, which drop a row.
    new: leaves [N, ...].
  """
  axes, shards = _rows_cut(tree, index)
  if shards == 1:
    put = lambda x, y: x.at[index].set(y, mode="drop")
    return jax.tree.map(put, tree, new)
  few = _at_a_time(tree, index, shards)

  def of_shard(tree, index, new):
    held = jax.tree.leaves(tree)[0].shape[0]
    first = jax.lax.axis_index(axes) * held

    def few_of_each(tree, rows):
      index, new = rows
      every = lambda x: jax.lax.all_gather(x, axes, tiled=True)
      new = jax.tree.map(every, new)
      return jax.lax.scan(put, tree, (index.reshape(-1) - first, new))[0], None

    def put(tree, row):
      place, new = row
      mine = (place >= 0) & (place < held)
      place = jnp.clip(place, 0, held - 1)
      # A slice is changed in place; a scatter would copy the whole on a TPU.
      set_row = lambda x, new, old: jax.lax.dynamic_update_index_in_dim(
        x, jnp.where(mine, new, old), place, 0
      )
      return jax.tree.map(set_row, tree, new, _row(tree, place)), None

    index = jnp.moveaxis(index.reshape(shards, -1, few), 1, 0)
    new = jax.tree.map(lambda x: x.reshape(-1, few, *x.shape[1:]), new)
    return jax.lax.scan(few_of_each, tree, (index, new))[0]

  cut, whole = PartitionSpec(axes), PartitionSpec()
  return jax.shard_map(of_shard, in_specs=(cut, whole, cut), out_specs=cut)(
    tree, index, new
  )


def _at_a_time(tree, index, shards):
  """How many rows each shard gets of every other in one round."""
  rows = index.shape[0] // shards
  row_bytes = sum(x.nbytes // x.shape[0] for x in jax.tree.leaves(tree))
  fit = max(1, MOVED_BYTES // (shards * row_bytes))
  return max(n for n in range(1, rows + 1) if rows % n == 0 and n <= fit)


def _row(tree, number):
  return jax.tree.map(lambda x: x[number], tree)


def _rows_cut(tree, index):
  """The mesh axes that cut these rows, and into how many parts."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(name for name in BATCH_AXES if name in mesh.auto_axes)
  shards = math.prod(mesh.shape[name] for name in axes)
  sizes = jax.tree.leaves(tree)[0].shape[0], index.shape[0]
  return axes, 1 if any(size % shards for size in sizes) else shards


def replicated(mesh: Mesh) -> NamedSharding:
  """The layout of scalars, keys and whatever is small."""
  return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
  """The layout of batches: the leading axis cut over data and fsdp."""
  return NamedSharding(mesh, PartitionSpec(RULES.batch))


def by_table(
  mesh: Mesh | AbstractMesh,
  params: Any,
  table: Sequence[tuple[str, tuple[str | None, ...]]],
  rules: Rules = RULES,
) -> Any:
  """A NamedSharding for each weight, from a table of path patterns.

  Args:
    mesh: the mesh.
    params: a tree of arrays or shapes.
    table: `(path pattern, logical axes)`; the first match decides.
    rules: logical axis -> mesh axis.

  Raises:
    KeyError: no pattern matches a weight.
    ValueError: a pattern has another rank than its weight.
    InputError: a mesh axis does not divide the axis it should cut.
  """

  def place(name, leaf):
    axes = pytree.first_match(name, table)
    if len(axes) != leaf.ndim:
      raise ValueError(f"{name}: axes {axes} for the shape {leaf.shape}")
    sharding = NamedSharding(mesh, rules.spec(*axes))
    for size, axis, part in zip(leaf.shape, axes, sharding.spec):
      over = [part] if isinstance(part, str) else part or ()
      parts = math.prod(mesh.shape[m] for m in over)
      if size % parts:
        raise InputError(
          f"the axis '{axis}' of {name} has size {size}, which the {parts} "
          f"devices of mesh axis '{' x '.join(over)}' do not divide; "
          "change config.mesh"
        )
    return sharding

  return pytree.map_with_name(place, params)


def join_processes(environ: Mapping[str, str]) -> None:
  """Joins the other processes of a run, where the launcher says there are any.

  A program that ends well must `wait_for_all` then, or those that end early
  take the others along.

  `JAXRL_PROCESSES` is "pod" on a Cloud TPU slice, whose workers find each
  other, or their number; then `JAXRL_COORDINATOR` is the address of the first
  and `JAXRL_PROCESS` this one's number.
  """
  processes = environ.get("JAXRL_PROCESSES")
  patience = {
    "heartbeat_timeout_seconds": SILENCE_SECONDS,
    "shutdown_timeout_seconds": SILENCE_SECONDS,
  }
  if processes == "pod":
    jax.distributed.initialize(**patience)
  elif processes:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
      environ["JAXRL_COORDINATOR"],
      num_processes=int(processes),
      process_id=int(environ["JAXRL_PROCESS"]),
      **patience,
    )
  if processes:
    # jax names a dead process by its number alone.
    here, of = jax.process_index(), jax.process_count()
    print(f"process {here} of {of} is {socket.gethostname()}", flush=True)


def local_rows(mesh: Mesh, count: int) -> list[int]:
  """Which of `count` rows the devices of this process hold.

  Where an axis that does not cut the batch spans several processes, all of
  them hold the same rows.
  """
  held = rows(mesh).addressable_devices_indices_map((count,)).values()
  return sorted({i for (cut,) in held for i in range(count)[cut]})


def first_held(mesh: Mesh, count: int) -> Bool[np.ndarray, " local"]:
  """Of the `local_rows` of this process, those that no earlier one holds."""
  here, held = jax.process_index(), _held_by_each(mesh, count)
  earlier = {number for part in held[:here] for number in part}
  return np.array([number not in earlier for number in held[here]])


def of_first_holder(
  x: Float[np.ndarray, "local K"], mesh: Mesh, count: int
) -> Float[np.ndarray, "local K"]:
  """What the first process that holds a row has for it, on all that hold it.

  Args:
    x: of the `local_rows` of this process; only those that are `first_held`
      count.
    mesh: the mesh.
    count: rows in all.
  """
  held = _held_by_each(mesh, count)
  if sum(map(len, held)) == count:
    return x
  first = {}
  for numbers, part in zip(held, multihost_utils.process_allgather(x)):
    first = dict(zip(numbers, part)) | first
  return np.stack([first[number] for number in local_rows(mesh, count)])


def _held_by_each(mesh, count):
  """`local_rows` of every process, by its number."""
  held = {}
  for device, (cut,) in rows(mesh).devices_indices_map((count,)).items():
    held.setdefault(device.process_index, set()).update(range(count)[cut])
  return [sorted(held[process]) for process in sorted(held)]


def to_device(tree: Any, mesh: Mesh) -> Any:
  """The `local_rows` of this process -> arrays cut over the batch axes."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(rows(mesh), np.asarray(x)),
    tree,
  )


def to_host(tree: Any) -> Any:
  """The rows this process holds of each global array, as numpy."""

  def local(x):
    if x.is_fully_addressable:
      return np.asarray(x)
    parts = {s.index[0].start or 0: s.data for s in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

  return jax.tree.map(local, tree)


def to_every_host(x: Array) -> np.ndarray:
  """All rows of a global array, on every process."""
  if x.is_fully_addressable:
    return np.asarray(x)
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def wait_for_all(name: str) -> None:
  """Returns when every process has come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def sum_over_processes(x: float) -> float:
  """The sum of a number of each process, the same on all of them."""
  if jax.process_count() == 1:
    return x
  return float(np.sum(multihost_utils.process_allgather(np.float64(x))))


def mean_over_processes(x: float) -> float:
  """The mean of a number of each process; all wait for the last one."""
  return sum_over_processes(x) / jax.process_count()


def gather_numbers(numbers: Sequence[int]) -> list[int]:
  """The numbers of all processes, sorted, each once, the same on all."""
  if jax.process_count() == 1:
    return sorted(set(numbers))
  # Only arrays of one size can be gathered.
  lengths = multihost_utils.process_allgather(np.array(len(numbers)))
  padded = np.full(lengths.max(), -1)
  padded[: len(numbers)] = numbers
  every = multihost_utils.process_allgather(padded).ravel()
  return sorted({int(n) for n in every if n >= 0})


def gather_texts(text: str) -> list[str]:
  """The text of each process, in their order, the same on all."""
  if jax.process_count() == 1:
    return [text]
  raw = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(len(raw)))
  padded = np.zeros(lengths.max(), np.uint8)
  padded[: len(raw)] = raw
  every = multihost_utils.process_allgather(padded)
  return [bytes(x[:n]).decode() for x, n in zip(every, lengths)]


def of_first_process(text: str) -> str:
  """The text of the first process, on all of them: it decides."""
  if jax.process_count() == 1:
    return text
  raw = np.frombuffer(text.encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int64(len(raw))))
  if not size:
    return ""
  padded = np.zeros(size, np.uint8)
  padded[: min(size, len(raw))] = raw[:size]
  return bytes(multihost_utils.broadcast_one_to_all(padded)).decode()
