"""A program of a run, as shapes on a mesh: nothing is held or run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from benchmarks.arithmetic import Work
from jaxrl_mm import sharding
from jaxrl_mm.data.loader import Layout
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
    rounds: of a loop whose end the data decide, at most.
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
  rounds: int = 1


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


class Cut(NamedTuple):
  """Of a step or a call, what a device takes at once.

  Attributes:
    rows: of all devices together.
    samples: neighbours that share a prompt.
    micro_batch: rows at once, at most.
    micro_tokens: tokens at once; 0 counts rows alone.
  """

  rows: int
  samples: int
  micro_batch: int
  micro_tokens: int

  def at_once(self, layout: Layout) -> int:
    """Rows, where every one is as long as can be."""
    prompt, answer = layout.prompt_tokens, layout.completion_tokens
    if not self.micro_tokens:
      return self.micro_batch
    groups, rest = divmod(self.micro_tokens, prompt + self.samples * answer)
    more = max(rest - prompt, 0) // answer
    return min(self.micro_batch, groups * self.samples + more)

  def prompts(self, layout: Layout) -> int:
    """That run, and whose pictures are seen."""
    return self.rows // min(self.samples, self.at_once(layout))

  def shared(self, layout: Layout) -> int:
    """Tokens of prompts that run for several rows."""
    if not self.micro_tokens:
      return 0
    return (self.rows - self.prompts(layout)) * layout.prompt_tokens

  def rounds(self, view: View) -> int:
    """Micro-batches of a batch shard."""
    return -(-self.rows // view.shards // self.at_once(view.setting.layout))


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
