"""One model from parts that were trained apart.

As Skywork R1V and R1V2 (https://arxiv.org/abs/2504.16656, section 3.1) are
made: the projector is aligned with a substitute language model, everything
else frozen; then a reasoning model of the same width takes the substitute's
place. The reasoner never sees a picture while it learns to reason.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrl_mm.data.sources import Source, Written
from jaxrl_mm.errors import InputError
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.huggingface.load import load_params
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train import sft
from jaxrl_mm.train.loop import Setting
from jaxrl_mm.train.sft import SftConfig

LANGUAGE = ("embedder", "decoder")


@dataclasses.dataclass(frozen=True)
class AssembleConfig:
  """Where the parts come from.

  Attributes:
    vision: folder of the checkpoint whose tower is taken; empty keeps the
      run's own.
    substitute: folder of the language model that the projector is aligned
      with; empty trains one on questions written out in text.
    reasoner: folder of the language model that takes its place; empty trains
      the substitute on.
    text: that training; needed where one of the two has no folder.
    align: of the projector.
  """

  vision: str = ""
  substitute: str = ""
  reasoner: str = ""
  text: SftConfig | None = None
  align: SftConfig = SftConfig(
    optimizer=OptimizerConfig(trainable="projector/.*")
  )


def check(config: AssembleConfig) -> None:
  """Raises InputError if a language model would come from nowhere."""
  if config.text is None and not (config.substitute and config.reasoner):
    raise InputError(
      "config.assemble names no folder for a language model and has no text to "
      "train one; set assemble.substitute and assemble.reasoner, or "
      "assemble.text"
    )


def run(
  setting: Setting,
  config: AssembleConfig,
  params: Params,
  source: Source,
  folder: Path,
) -> Params:
  """Puts the parts together.

  Args:
    setting: shared by all stages; the image tokens are those of its tokenizer,
      which is the reasoner's.
    config: of this stage.
    params: weights on the mesh, without those of `loaded_first`; they are
      given away.
    source: demonstrations with pictures, which align the projector.
    folder: of the stage.

  Returns:
    Tower and projector, and the language model of the reasoner.
  """
  if config.vision:
    params = params | _load(setting, config.vision, ("vision",))
  params = _language(setting, config, params, source, folder, "substitute")
  reasoner = {}
  if not config.reasoner:
    # Both trainings give their weights away.
    copy = jax.tree.map(jnp.copy, params)
    trained = _language(setting, config, copy, source, folder, "reasoner")
    reasoner = taken(config, "reasoner", trained)
    del copy, trained
  params = sft.run(
    setting,
    config.align,
    params,
    source,
    folder,
    part="align",
    before=_text_steps(config, before="align"),
  )
  params = taken(config, "align", params)  # the substitute's room is free now
  if config.reasoner:
    reasoner = _load(setting, config.reasoner, LANGUAGE)
  return params | reasoner


def loaded_first(config: AssembleConfig) -> tuple[str, ...]:
  """The parts of the model that folders give before anything is trained."""
  vision = ("vision",) if config.vision else ()
  return vision + (LANGUAGE if config.substitute else ())


def load(config: AssembleConfig, model: ModelConfig, mesh: Mesh) -> Params:
  """The parts that folders give to the whole: the tower, and the reasoner or
  the substitute that it is trained from."""
  language = config.reasoner or config.substitute
  parts = {}
  for path, names in ((config.vision, ("vision",)), (language, LANGUAGE)):
    if path:
      parts |= load_params(Path(path), model, mesh, parts=names)
  return parts


def taken(config: AssembleConfig, part: str, trained: Params) -> Params:
  """What the whole has of the weights that the training of a part gave."""
  language = {"substitute": not config.reasoner, "reasoner": True}
  wanted = lambda name: (
    language.get(part, False) if name in LANGUAGE else part != "reasoner"
  )
  return {name: x for name, x in trained.items() if wanted(name)}


def _language(setting, config, params, source, folder, name) -> Params:
  """The model with the language model `name`, from its folder or trained."""
  if path := getattr(config, name):
    return params | _load(setting, path, LANGUAGE)
  text_only = dataclasses.replace(setting.layout, pictures=None)
  # The reasoner reads other questions than the substitute did.
  seed = setting.seed + (name == "reasoner")
  return sft.run(
    dataclasses.replace(setting, layout=text_only, seed=seed),
    config.text,
    params,
    Written(source),
    folder,
    part=name,
    before=0
    if name == "substitute" or config.substitute
    else config.text.steps,
  )


def _text_steps(config: AssembleConfig, before: str) -> int:
  """Steps of the language models that are trained before a part."""
  order = ("substitute", "reasoner", "align")
  earlier = order[: order.index(before)]
  trained = [name for name in earlier if not getattr(config, name)]
  return sum(config.text.steps for _ in trained)


def _load(setting: Setting, folder: str, parts: tuple[str, ...]) -> Params:
  return load_params(Path(folder), setting.model, setting.mesh, parts=parts)
