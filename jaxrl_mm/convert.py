"""Writes a checkpoint that transformers and servers load without our code.

A run, its adapters merged, in the layout of the model it started from:
  python -m jaxrl_mm.convert --run runs/r1v2 --out DIR
Its adapters alone, as peft reads them:
  python -m jaxrl_mm.convert --run runs/r1v2 --adapters --out DIR
A model put together from three checkpoints, as R1V2 was:
  python -m jaxrl_mm.convert --vision InternVL3-38B --projector InternVL3-38B \\
    --llm QwQ-32B --out DIR
A published checkpoint in another dtype, or a GGUF file as such a folder:
  python -m jaxrl_mm.convert --model DIR --dtype float32 --out DIR
  python -m jaxrl_mm.convert --gguf FILE --out DIR
"""

import argparse
import dataclasses
import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from jaxrl_mm import experiment, sharding, weights
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import lora
from jaxrl_mm.models.config import ModelConfig
from jaxrl_mm.models.huggingface import (
  assemble,
  families,
  gguf,
  load,
  peft,
  safetensors,
)
from jaxrl_mm.models.huggingface.assemble import Parts
from jaxrl_mm.models.huggingface.save import save_params
from jaxrl_mm.models.huggingface.tables import Entry


def convert(args: argparse.Namespace) -> None:
  """Does what the command line asks for."""
  if args.gguf:
    gguf.export(args.gguf, args.out)
  elif args.run:
    write_run(args.run, args.out, args.dtype, adapters=args.adapters)
  elif args.vision:
    parts = Parts(args.vision, args.projector, args.llm)
    write_assembled(parts, args.out, args.dtype)
  else:
    write_published(args.model, args.out, args.dtype)


def write_published(folder: Path, out: Path, dtype: str | None) -> None:
  """A published checkpoint again, in this dtype or, to the bit, in its own."""
  config = dataclasses.replace(
    families.read_config(folder), param_dtype=dtype or _widest_dtype(folder)
  )
  params = load.load_params(folder, config, sharding.make_mesh(1, -1))
  save_params(params, entries(folder, config), out, like=folder, dtype=dtype)


def _widest_dtype(folder: Path) -> str:
  """The smallest dtype that holds all tensors of a checkpoint exactly."""
  tensors = safetensors.scan(folder).tensors.values()
  found = {t.dtype for t in tensors} & safetensors.FLOATS.keys()
  return str(
    functools.reduce(
      jnp.promote_types, [safetensors.FLOATS[name] for name in found]
    )
  )


def write_run(
  workdir: Path, out: Path, dtype: str | None, *, adapters: bool
) -> None:
  """The weights a run has reached, in the layout of its published model.

  Args:
    workdir: of the run.
    out: folder; must not exist, or be empty.
    dtype: of the tensors; None leaves it as in the published model.
    adapters: only the adapters, as peft reads them.

  Raises:
    InputError: the run started from no published checkpoint, so that there is
      no layout for its weights, or has no adapters.
  """
  e = experiment.read(workdir)
  if not e.pretrained:
    raise InputError(
      f"the run {workdir} started from no published checkpoint, whose layout "
      "its weights could have; start a run with config.pretrained, which can "
      "be what --vision, --projector and --llm have put together"
    )
  if adapters and not e.lora:
    raise InputError(f"the run {workdir} has no adapters; leave out --adapters")
  like = Path(e.pretrained)
  params = weights.final(e, workdir, sharding.make_mesh(1, -1))
  if adapters:
    table = peft.module_table(like, e.model)
    peft.save(params, table, e.lora, e.pretrained, out)
  else:
    table = entries(like, e.model)
    save_params(lora.merge(params), table, out, like=like, dtype=dtype)


def write_assembled(parts: Parts, out: Path, dtype: str | None) -> None:
  """Tower, projector and decoder of different checkpoints as one model.

  The decoder's tokenizer learns the tokens of pictures it lacks; where the
  embeddings have no rows for them, rows are added. Without a dtype it is the
  decoder's.
  """
  dtype = dtype or _widest_dtype(parts.llm)
  config = assemble.read_config(parts)
  config = dataclasses.replace(config, param_dtype=dtype)
  tokenizer = tok.load(str(parts.llm))
  tok.add_image_tokens(tokenizer)
  params = assemble.load_params(parts, config, sharding.make_mesh(1, -1))
  if len(tokenizer) > config.decoder.vocab:
    params = assemble.grow_vocabulary(params, len(tokenizer))
  vocab = params["embedder"]["table"].shape[0]
  image_token = tok.token_id(tokenizer, tok.IMAGE_TOKEN)
  description = assemble.describe(parts, image_token, vocab)
  with tempfile.TemporaryDirectory() as form:
    like = assemble.prepare(parts, Path(form), description)
    tokenizer.save_pretrained(form)
    save_params(
      params, entries(parts.projector, config), out, like=like, dtype=dtype
    )


def entries(folder: Path, config: ModelConfig) -> Sequence[Entry]:
  """The table of a folder's layout for a model of these sizes."""
  names = safetensors.scan(folder).tensors.keys()
  return families.family(folder).table(config, names)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    prog="python -m jaxrl_mm.convert",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  for name in ("model", "run", "vision", "projector", "llm", "gguf"):
    parser.add_argument(f"--{name}", type=Path, metavar="PATH")
  parser.add_argument("--out", type=Path, required=True, metavar="DIR")
  parser.add_argument("--adapters", action="store_true")
  parser.add_argument(
    "--dtype",
    choices=("bfloat16", "float16", "float32"),
    help="of all weights; they keep that of the published model without it",
  )
  args = parser.parse_args(argv)
  given = [n for n in ("model", "run", "vision", "gguf") if getattr(args, n)]
  if len(given) != 1:
    parser.error("give one of --model, --run, --gguf, or the three parts")
  if args.vision and not (args.projector and args.llm):
    parser.error("--vision needs --projector and --llm beside it")
  return args


if __name__ == "__main__":
  try:
    convert(parse())
  except InputError as error:
    sys.exit(f"error: {error}")
