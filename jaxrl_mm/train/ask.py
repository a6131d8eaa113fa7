"""Examples to completions on the host, outside of any training."""

from collections.abc import Sequence

import jax

from jaxrl_mm import sharding
from jaxrl_mm.data import loader
from jaxrl_mm.data.sources import Example
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.rollout import Sample
from jaxrl_mm.structs import Completions
from jaxrl_mm.train.loop import Setting


def ask(
  setting: Setting,
  sample: Sample,
  params: Params,
  examples: Sequence[Example],
  key: jax.Array,
  *,
  batch: int,
) -> Completions:
  """Completions of at most `batch` examples, all of them on every process.

  Args:
    setting: shared by all stages.
    sample: draws G completions a prompt.
    params: of the model.
    examples: at least one.
    key: of the draws.
    batch: prompts of the program, a multiple of the row shards; places that
      are left over are filled with examples again.

  Returns:
    numpy, G rows an example.
  """
  full = [examples[i % len(examples)] for i in range(batch)]
  encode = lambda i: loader.encode_prompt(
    full[i], i, setting.tokenizer, setting.layout
  )
  rows = [
    (encode(i), full[i]) for i in sharding.local_rows(setting.mesh, batch)
  ]
  prompts = sharding.to_device(loader.stack(rows).arrays, setting.mesh)
  drawn = jax.tree.map(sharding.to_every_host, sample(params, prompts, key))
  each = len(drawn.tokens) // batch
  return jax.tree.map(lambda x: x[: each * len(examples)], drawn)
