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

from jaxrl_mm.data.sources import Source, Written
from jaxrl_mm.errors import InputError
from jaxrl_mm.models.huggingface import load
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
    params: weights on the mesh, for the parts without a folder; they are
      given away.
    source: demonstrations with pictures, which align the projector.
    folder: of the stage.

  Returns:
    Tower and projector, and the language model of the reasoner.
  """
  if config.vision:
    params = params | _load(setting, config.vision, ("vision",))
  params = _language(setting, config, params, source, folder, "substitute")
  # Both trainings give their weights away.
  copy = jax.tree.map(jnp.copy, params)
  reasoner = _language(setting, config, copy, source, folder, "reasoner")
  aligned = sft.run(
    setting,
    config.align,
    params,
    source,
    folder,
    part="align",
    before=_text_steps(config, before="align"),
  )
  return aligned | {name: reasoner[name] for name in LANGUAGE}


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
  return load.load_params(
    Path(folder), setting.model, setting.mesh, parts=parts
  )
