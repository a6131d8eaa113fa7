"""A program of a run, as shapes on a mesh: nothing is held or run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from benchmarks.arithmetic import Work
from jaxrl_mm import sharding
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.train.loop import Setting


class Program(NamedTuple):
  """One jitted function with the shapes it is called with.

  Attributes:
    stage, name: where in the run.
    jitted: has `lower`.
    arguments: makes the shapes with their layout, which may take a compiler.
    fixed: static arguments by name.
    beside: what else lies on the devices meanwhile.
    work: of one call, all devices together.
    calls: in one step of the stage; 0 for those that hardly take time.
    tokens: of prompts and answers that the step handles.
    settings: of the config, that make it smaller.
  """

  stage: str
  name: str
  jitted: Callable[..., Any]
  arguments: Callable[[], tuple[Any, ...]]
  fixed: dict[str, Any]
  beside: Any
  work: Work
  calls: float
  tokens: int
  settings: str


class View(NamedTuple):
  """What all programs of a run are described with.

  Attributes:
    e: the experiment.
    setting: shared by its stages.
    params, reward: shapes of the policy and of the reward model, placed.
    answer_tokens: mean length of an answer, for the time of sampling.
  """

  e: Experiment
  setting: Setting
  params: Any
  reward: Any
  answer_tokens: int

  @property
  def shards(self) -> int:
    shape = self.setting.mesh.shape
    return shape["data"] * shape["fsdp"]

  @property
  def length(self) -> int:
    layout = self.setting.layout
    return layout.prompt_tokens + layout.completion_tokens


def placed(
  mesh: Mesh, params: Any, rules: sharding.Rules = sharding.RULES
) -> Any:
  """Shapes of weights with their layout."""
  return with_layout(params, param_shardings(mesh, params, rules))


def with_layout(shapes: Any, layout: Any) -> Any:
  """Shapes, each with its own sharding."""
  make = lambda s, l: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=l)
  return jax.tree.map(make, shapes, layout)


def rows(view: View, shapes: Any) -> Any:
  """Shapes of batches, cut over the batch axes."""
  layout = sharding.rows(view.setting.mesh)
  return jax.tree.map(lambda s: with_layout(s, layout), shapes)


def everywhere(view: View, shapes: Any) -> Any:
  """Shapes of what every device holds whole."""
  layout = sharding.replicated(view.setting.mesh)
  return jax.tree.map(lambda s: with_layout(s, layout), shapes)
