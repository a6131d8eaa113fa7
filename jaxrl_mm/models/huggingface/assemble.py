"""One model from the parts of several checkpoints, as R1V and R1V2 are made:
tower and projector of a vision-language model, the decoder of a reasoner."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxrl_mm.errors import InputError
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.huggingface import families, load, safetensors
from jaxrl_mm.models.vlm import Params


class Parts(NamedTuple):
  """The checkpoint each part comes from; tower and projector may share one."""

  vision: Path
  projector: Path
  llm: Path


def read_config(parts: Parts) -> ModelConfig:
  """The sizes of the model the parts make.

  Raises:
    InputError: they do not fit together; says which widths differ.
  """
  vision, projector, llm = (families.read_config(p) for p in parts)
  for name, folder in (("vision", vision), ("projector", projector)):
    if folder.vision is None:
      raise InputError(
        f"--{name} {getattr(parts, name)} is a model of text alone; name a "
        "vision-language model"
      )
  fits = [
    ("the tower", vision.vision.width, projector.vision.width),
    ("the decoder", llm.decoder.width, projector.decoder.width),
    ("the image tokens' square", vision.shuffle, projector.shuffle),
  ]
  for what, has, wants in fits:
    if has != wants:
      raise InputError(
        f"{what} has {has} and the projector of {parts.projector} takes "
        f"{wants}; name parts of one width"
      )
  return dataclasses.replace(
    projector, vision=vision.vision, decoder=llm.decoder
  )


def load_params(parts: Parts, config: ModelConfig, mesh: Mesh) -> Params:
  """The parts as one tree, laid out over a mesh."""
  take = lambda folder, names: load.load_params(
    folder,
    dataclasses.replace(
      families.read_config(folder), param_dtype=config.param_dtype
    ),
    mesh,
    parts=names,
  )
  return (
    take(parts.vision, ("vision",))
    | take(parts.projector, ("projector",))
    | take(parts.llm, ("embedder", "decoder"))
  )


def grow_vocabulary(params: Params, size: int) -> Params:
  """Rows for new tokens, each the mean of the rows that are there."""

  def grow(table: Float[Array, "V D"]) -> Float[Array, "W D"]:
    mean = jnp.mean(table, axis=0, keepdims=True, dtype=jnp.float32)
    more = jnp.repeat(mean.astype(table.dtype), size - table.shape[0], axis=0)
    return jnp.concatenate([table, more])

  embedder = {name: grow(t) for name, t in params["embedder"].items()}
  return params | {"embedder": embedder}


def describe(parts: Parts, image_token: int, vocab: int) -> dict:
  """`config.json` of the model: the projector's, with the other parts' own.

  Args:
    parts: the checkpoints.
    image_token: id of the image placeholder in the decoder's tokenizer.
    vocab: rows of its embeddings.
  """
  vision, whole, llm = (
    json.loads((folder / "config.json").read_text()) for folder in parts
  )
  text = "text_config" if "text_config" in whole else "llm_config"
  whole["vision_config"] = vision.get("vision_config", vision)
  whole[text] = llm | {"vocab_size": vocab}
  for name in ("image_token_id", "image_token_index", "img_context_token_id"):
    if name in whole:
      whole[name] = image_token
  return whole


# Files of the projector's folder that the decoder's own replace.
_OF_DECODER = ("tokenizer", "vocab", "merges", "added_", "special_", "chat_")


def prepare(parts: Parts, folder: Path, description: dict) -> Path:
  """Fills a folder with all that goes beside the weights but the tokenizer."""
  for path in parts.projector.iterdir():
    own = path.name.startswith(_OF_DECODER) or path.name == safetensors.INDEX
    if path.suffix in (".json", ".py", ".jinja") and not own:
      shutil.copyfile(path, folder / path.name)
  generation = parts.llm / "generation_config.json"
  if generation.exists():
    shutil.copyfile(generation, folder / generation.name)
  text = json.dumps(description, indent=2) + "\n"
  (folder / "config.json").write_text(text)
  return folder
