"""Trains: `python -m jaxrl_mm.main --config=configs/NAME.py --workdir=DIR`.

Any value of the config can be changed: `--config.policy.steps=100`.
"""

import os
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from jaxrl_mm import experiment, preemption, run, sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.preemption import Preempted
from jaxrl_mm.rewards.judge import JudgeDown

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment: a file of configs/, with its variant."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run; an interrupted one is continued."
)


def parse(argv: list[str]) -> list[str]:
  """Reads the command line; a mistake in it is one sentence."""
  try:
    rest = flags.FLAGS(argv)
    _CONFIG.value.to_dict()  # a file that could not be loaded says so here
    return rest
  except (KeyError, AttributeError) as error:
    sys.exit(f"error: the config has no such value: {error.args[0]}")
  except flags.Error as error:
    # A config that raises has its whole traceback here; the end says why.
    sys.exit(f"error: {str(error).strip().splitlines()[-1]}")
  except (OSError, ImportError, SyntaxError, InputError) as error:
    reason = " ".join(str(error).split())
    sys.exit(f"error: the config file cannot be read: {reason}")


def main(argv: list[str]) -> None:
  """Reads the flags and runs the experiment."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown argument {argv[1]}")
  logging.set_verbosity(logging.ERROR)
  try:
    e = experiment.from_config(_CONFIG.value)
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
      jax.config.update("jax_num_cpu_devices", e.mesh.cpu_devices)
    sharding.join_processes(os.environ)
    workdir = Path(_WORKDIR.value)
    if not jax.config.jax_compilation_cache_dir:
      # For the rounds of a stage, and for a run that is continued.
      jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    preemption.watch()
    run.run(e, workdir)
    sharding.wait_for_all("the end")  # the first process writes longest
  except (InputError, JudgeDown) as error:
    sys.exit(f"error: {error}")
  except Preempted as word:
    sys.exit(f"stopped: {word}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=parse)
