"""The weights a run starts from, and those it ended with."""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxrl_mm import experiment, pytree
from jaxrl_mm.checkpoint import Checkpoints
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import DataConfig, Experiment, trainings
from jaxrl_mm.models import lora, vlm
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.huggingface import families, load
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.optimizer import split_trainable
from jaxrl_mm.train import assemble

# As published models are used; InternVLs take a picture in up to 12 tiles.
PUBLISHED = DataConfig(
  prompt_tokens=16384, completion_tokens=8192, max_tiles=12
)


def describe(folder: Path) -> Experiment:
  """What a run was made of, or a published checkpoint as an experiment.

  Raises:
    InputError: the folder holds neither.
  """
  if experiment.is_run(folder):
    return experiment.read(folder)
  # The cores of most CPUs have no bfloat16.
  dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  model = dataclasses.replace(
    families.read_config(folder), dtype=dtype, param_dtype=dtype
  )
  return Experiment(model=model, pretrained=str(folder), data=PUBLISHED)


def of_folder(e: Experiment, folder: Path, mesh: Mesh) -> Params:
  """Those a run has reached, or the published ones; `e` is of `describe`."""
  if experiment.is_run(folder):
    return final(e, folder, mesh)
  return initial(e, mesh)


def initial(e: Experiment, mesh: Mesh) -> Params:
  """Published or random weights, each made where it will live.

  Parts that the assembly reads from folders of their own are left out.

  Raises:
    InputError: the published model has other sizes than the config.
  """
  key = jax.random.key(e.seed)
  later = assemble.loaded_first(e.assemble) if "assemble" in e.stages else ()
  parts = tuple(name for name in shapes(e) if name not in later)
  if e.pretrained:
    folder = Path(e.pretrained)
    check_sizes(e.model, families.read_config(folder), folder)
    params = load.load_params(folder, e.model, mesh, parts if later else ())
  else:
    make = lambda key: {n: vlm.init(e.model, key)[n] for n in parts}
    params = _placed(make, mesh, key)
  if e.lora:
    attach = lambda params, key: lora.attach(e.lora, params, key)
    params = _placed(attach, mesh, params, key)
  return params


def _placed(make, mesh, *args):
  layout = param_shardings(mesh, jax.eval_shape(make, *args))
  return jax.jit(make, out_shardings=layout)(*args)


def shapes(e: Experiment) -> Params:
  """Shapes of all weights, wherever they come from."""

  def make():
    key = jax.random.key(e.seed)
    params = vlm.init(e.model, key)
    return lora.attach(e.lora, params, key) if e.lora else params

  return jax.eval_shape(make)


def check_sizes(wanted: ModelConfig, found: ModelConfig, folder: Path) -> None:
  """Raises InputError if a config describes another model than a folder."""
  free = ("dtype", "param_dtype", "remat")
  found = dataclasses.replace(found, **{n: getattr(wanted, n) for n in free})
  there, here = dataclasses.asdict(found), dataclasses.asdict(wanted)
  differ = [*pytree.differences(there, here).values()]
  if differ:
    raise InputError(
      f"config.model does not describe {folder}: {'; '.join(differ[:5])}; "
      "change config.model or config.pretrained"
    )


def final(e: Experiment, workdir: Path, mesh: Mesh) -> Params:
  """The policy's weights where a run stands: what each stage trained last.

  Raises:
    InputError: no stage has a checkpoint yet.
  """
  params, found = initial(e, mesh), False
  if "assemble" in e.stages:
    params |= assemble.load(e.assemble, e.model, mesh)
  for name in e.stages:
    for part, (optimizer, _) in trainings(e, name).items():
      folder = workdir / name / part / "checkpoints"
      if not folder.is_dir() or name == "reward_model":
        continue
      with Checkpoints(folder, keep=None) as checkpoints:
        if checkpoints.latest_step():
          trained, frozen = split_trainable(optimizer, params)
          whole = pytree.join(checkpoints.restore_params(trained), frozen)
          if name == "assemble":
            whole = assemble.taken(e.assemble, part, whole)
          params, found = params | whole, True
  if not found:
    raise InputError(
      f"{workdir} has no checkpoint yet; let the run reach its first save"
    )
  return params
