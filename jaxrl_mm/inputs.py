"""What the stages of a run read: its tokenizer, shapes and opened sources."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from jaxrl_mm import experiment
from jaxrl_mm.data import (
  comparisons,
  loader,
  pairs,
  patches,
  sets,
  skipping,
  sources,
  templates,
)
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.images import Tiles
from jaxrl_mm.data.loader import Layout
from jaxrl_mm.data.pairs import Given
from jaxrl_mm.data.patches import Patching
from jaxrl_mm.data.skipping import Sound
from jaxrl_mm.data.sources import Source
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import DataConfig, Experiment
from jaxrl_mm.models.config import ModelConfig, QwenVisionConfig
from jaxrl_mm.train.loop import Setting

_ENDLESS = 1 << 30


class Sources(NamedTuple):
  """Questions of a run, and pairs; see `DataConfig` and `EvaluationConfig`."""

  held_out: Source
  demonstrations: Source
  prompts: Source
  given: Given | None = None


def make_setting(e: Experiment, mesh: jax.sharding.Mesh) -> Setting:
  """Tokenizer, shapes and mesh, checked against the model."""
  folder = e.data.tokenizer or e.pretrained
  pairs = e.data.prompts.startswith(comparisons.DIGIT_PAIRS)
  texts = comparisons.digit_pair_texts() if pairs else sources.digits_texts()
  tokenizer = tok.load(folder) if folder else tok.build(texts)
  if len(tokenizer) > e.model.decoder.vocab:
    raise InputError(
      f"the tokenizer has {len(tokenizer)} entries and config.model.decoder."
      f"vocab is {e.model.decoder.vocab}; use the model's own tokenizer"
    )
  layout = make_layout(e)
  return Setting(
    model=e.model,
    tokenizer=tokenizer,
    image_token=templates.image_token(tokenizer, layout.markup),
    layout=layout,
    mesh=mesh,
    loop=e.loop,
    seed=e.seed,
    profile=experiment.profiled(e),
  )


def make_layout(e: Experiment) -> Layout:
  """The shapes of prompts, and of pictures where the model sees any."""
  vision, data = e.model.vision, e.data
  layout = partial(
    Layout, data.prompt_tokens, data.completion_tokens, prefix=data.prefix
  )
  if vision is None:
    return layout(pictures=None, markup=templates.TEXT)
  if isinstance(vision, QwenVisionConfig):
    return layout(pictures=make_patching(e.model, data), markup=templates.QWEN)
  tiles = Tiles(
    max_tiles=data.max_tiles,
    image_size=vision.image_size,
    tokens=(vision.side // e.model.shuffle) ** 2,
    max_pictures=data.max_pictures,
  )
  return layout(pictures=tiles)


def make_patching(model: ModelConfig, data: DataConfig) -> Patching:
  """How the pictures of a Qwen2.5-VL are cut.

  Raises:
    InputError: a patch would hold another number of frames than the tower
      takes.
  """
  vision = model.vision
  if data.frames not in (1, vision.frames):
    raise InputError(
      f"config.data.frames is {data.frames}; set it to 1 for pictures alone or "
      f"to {vision.frames}, the frames of a patch, for videos"
    )
  token = vision.patch_size * model.shuffle
  enough = patches.enough_windows(
    data.max_pixels // token**2, vision.window // model.shuffle
  )
  return Patching(
    windows=data.windows or data.max_pictures * enough,
    max_pictures=data.max_pictures,
    min_pixels=min(patches.MIN_PIXELS, data.max_pixels),
    max_pixels=data.max_pixels,
    frames=data.frames,
    patch_size=vision.patch_size,
    window=vision.window,
    shuffle=model.shuffle,
    tower_frames=vision.frames,
  )


def open_sources(e: Experiment, setting: Setting, workdir: Path) -> Sources:
  """Held-out questions, demonstrations, prompts; all opened before training.

  Seeds differ, so that the prompts are other pictures than the
  demonstrations; held-out questions are the same for every seed.
  """
  demonstrations = sets.open_source(
    e.data.demonstrations,
    size=_ENDLESS,
    seed=2 * e.seed,
    labelled=e.data.labelled,
  )
  if "sft" in e.stages:
    sources.check_demonstrations(demonstrations)
  prompts = sets.open_source(e.data.prompts, size=_ENDLESS, seed=2 * e.seed + 1)
  imitated = {"sft", "assemble"} & set(e.stages)
  encode = loader.encode_demonstration if imitated else loader.encode_prompt
  sound = partial(_sound, e, setting, workdir)
  return Sources(
    _open_held_out(e),
    sound(demonstrations, e.data.demonstrations, encode),
    sound(prompts, e.data.prompts, loader.encode_prompt),
    _open_given(e, sound),
  )


def _open_given(e: Experiment, sound) -> Given | None:
  if not e.data.pairs:
    return None
  opened = sets.open_pairs(e.data.pairs, size=_ENDLESS, seed=2 * e.seed + 1)
  return Given(sound(opened, e.data.pairs, pairs.encode_given))


def _sound(e, setting, workdir, source, name, encode):
  """The source as it is, or without the records that cannot be encoded."""
  if not e.data.skip_bad:
    return source
  fits = lambda record: encode(record, 0, setting.tokenizer, setting.layout)
  return Sound(source, fits, skipping.make_tell(skipped(workdir), name))


def skipped(workdir: Path) -> Path:
  """Every process names the bad records it has met."""
  return workdir / f"skipped.{jax.process_index()}.jsonl"


def _open_held_out(e: Experiment) -> Source:
  """The same for every seed."""
  if e.judging:
    return sets.open_source(
      e.judging.source, size=e.judging.pairs, seed=0, both_orders=True
    )
  held_out = sets.open_source(
    e.evaluation.source, size=e.evaluation.size, seed=0
  )
  if len(held_out) < e.evaluation.size:
    raise InputError(
      f"config.evaluation.size is {e.evaluation.size} and "
      f"{e.evaluation.source} has {len(held_out)} records"
    )
  return held_out
