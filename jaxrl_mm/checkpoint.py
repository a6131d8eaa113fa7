"""Saving and restoring a whole stage with orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxrl_mm.errors import InputError


class Checkpoints:
  """The checkpoints of one stage. A context manager; closing waits for saves.

  A save runs beside the training that follows it. It appears under its final
  name only when it is whole, so a kill leaves the previous one in place.

  Args:
    folder: where they live.
    keep: newest ones to keep; None only reads, and leaves the folder of a run
      that is still saving as it is.
  """

  def __init__(self, folder: Path, keep: int | None = 2):
    self._folder = folder
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, cleanup_tmp_directories=True
    )
    if keep is None:
      options = ocp.CheckpointManagerOptions(
        read_only=True, create=False, save_interval_steps=0
      )
    self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: object) -> None:
    self._manager.wait_until_finished()
    self._manager.close()

  def latest_step(self) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    return self._manager.latest_step() or 0

  def wait(self) -> None:
    """Returns when every save that was started is whole."""
    self._manager.wait_until_finished()

  def save(self, step: int, state: Any, data: dict[str, Any]) -> None:
    """Starts saving the state and the position in the data."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)
      ),
    )

  def restore(self, state: Any) -> tuple[Any, dict[str, Any]]:
    """The newest checkpoint: the state and the position in the data.

    Args:
      state: arrays or shapes with shardings; the restored state has its
        structure and layout, which may be another mesh than the saved one's.

    Raises:
      InputError: the checkpoint cannot be read.
    """
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    restored = self._read(
      ocp.args.Composite(
        state=ocp.args.StandardRestore(shapes), data=ocp.args.JsonRestore()
      )
    )
    return restored["state"], restored["data"]

  def restore_params(self, params: Any) -> Any:
    """The weights of the newest checkpoint and nothing else of it.

    Args:
      params: arrays or shapes with shardings of the weights wanted.

    Raises:
      InputError: the checkpoint cannot be read.
    """
    shapes = {"params": jax.tree.map(ocp.utils.to_shape_dtype_struct, params)}
    weights = ocp.args.PyTreeRestore(
      item=shapes,
      restore_args=ocp.checkpoint_utils.construct_restore_args(shapes),
      partial_restore=True,
    )
    return self._read(ocp.args.Composite(state=weights))["state"]["params"]

  def _read(self, args: Any) -> Any:
    step = self.latest_step()
    try:
      return self._manager.restore(step, args=args)
    except Exception as error:  # orbax raises many kinds on damaged files
      first = str(error).splitlines()[0][:200] if str(error) else repr(error)
      raise InputError(
        f"the checkpoint {self._folder / str(step)} cannot be read ({first}); "
        "delete that folder to continue from an earlier one"
      ) from error
