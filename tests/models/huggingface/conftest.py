"""A second reading of the tables, and the model's numbers to compare."""

import json
import re
import zlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import pytree
from jaxrl_mm.models import vlm
from jaxrl_mm.sampling.decode import Sampling
from jaxrl_mm.sampling.generate import generate

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="session")
def golden():
  """`name -> (arrays, what the json says)` of a file in tests/golden."""

  def read(name):
    about = json.loads((GOLDEN / f"{name}.json").read_text())
    return dict(np.load(GOLDEN / f"{name}.npz")), about

  return read


@pytest.fixture(scope="session")
def weights():
  """`shapes -> tensors`, by their names, as in make_internvl.py."""

  def weight(name, shape):
    noise = np.random.RandomState(zlib.crc32(name.encode()))
    x = noise.standard_normal(shape)
    if "norm" in name and name.endswith("weight") or "lambda" in name:
      return (1 + 0.3 * x).astype(np.float32)
    return (x * (0.5 if "embed_tokens" in name else 0.2)).astype(np.float32)

  return lambda shapes: {n: weight(n, s) for n, s in shapes.items()}


@pytest.fixture(scope="session")
def right_padded():
  """Prompts with the padding of each row behind it."""

  def turn(prompts):
    roll = lambda x: jnp.stack(
      [jnp.roll(row, m.sum(), 0) for row, m in zip(x, prompts.mask)]
    )
    return prompts._replace(
      tokens=roll(prompts.tokens), mask=roll(prompts.mask)
    )

  return turn


def _leaf(entry, shape, tensors):
  """One leaf, copied tensor by tensor."""
  ours, theirs = entry.axes.split(" = ")
  size = dict(zip(ours.split(), shape, strict=True))
  flat = re.sub("[()]", "", theirs).split()
  braces = [b.partition(":") for b in re.findall("{(.*?)}", entry.theirs)]
  stacked = [letter for letter, _, _ in braces]
  out = np.full([size[x] for x in [*stacked, *flat]], np.nan, np.float32)
  for index in np.ndindex(*out.shape[: len(stacked)]):
    words = [c.split("|")[i] if c else i for i, (_, _, c) in zip(index, braces)]
    name = re.sub("{.*?}", "{}", entry.theirs).format(*words)
    out[index] = tensors[name].reshape([size[x] for x in flat])
  source = [*stacked, *flat]
  return jnp.asarray(out.transpose([source.index(x) for x in ours.split()]))


@pytest.fixture(scope="session")
def from_tensors():
  """`(config, entries, tensors) -> params`, each leaf by exactly one entry."""

  def read(config, entries, tensors):
    shapes = jax.eval_shape(lambda k: vlm.init(config, k), jax.random.key(0))
    by_name = {entry.ours: entry for entry in entries}
    assert len(by_name) == len(entries)
    assert by_name.keys() == dict(pytree.named_leaves(shapes)).keys()
    return pytree.map_with_name(
      lambda name, x: _leaf(by_name[name], x.shape, tensors), shapes
    )

  return read


@pytest.fixture(scope="session")
def compare_gradients(from_tensors):
  """Compares the weights whose gradients are known, and counts them."""

  def compare(config, entries, shapes, mine, theirs):
    unknown = {n: np.full(s, np.nan) for n, s in shapes.items()}
    known = {n: x for n, x in theirs.items() if x is not None}
    theirs = from_tensors(config, entries, unknown | known)
    others = dict(pytree.named_leaves(theirs))
    compared = 0
    for name, x in pytree.named_leaves(mine):
      if not np.isnan(others[name]).any():
        scale = np.abs(others[name]).max()
        gap = np.abs(x - others[name]).max() / scale
        assert gap < 1e-4, (name, gap)
        compared += 1
    return compared

  return compare


@pytest.fixture(scope="session")
def score():
  """`(config, image_token) -> jitted (params, prompts) -> (loss, numbers)`.

  The mean log-loss of the prompts' own tokens and its gradient, with hidden
  states and logits beside it.
  """

  def make(config, image_token):
    def loss(params, prompts):
      features = None
      if prompts.images is not None:
        features = vlm.encode_images(config, params, prompts.images)
      x = vlm.embed(config, params, prompts.tokens, features, image_token)
      where, _ = vlm.positions(prompts, 0)
      mask = prompts.mask
      hidden, _ = vlm.run_decoder(config, params, x, where, vlm.causal(mask))
      logits = hidden @ vlm.head(params).T
      logp = jax.nn.log_softmax(logits[:, :-1])
      picked = prompts.tokens[:, 1:, None]
      logp = jnp.take_along_axis(logp, picked, axis=-1)[..., 0]
      scored = mask[:, 1:] & mask[:, :-1]
      mean = -jnp.sum(logp * scored) / jnp.sum(scored)
      return mean, (hidden, logits)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))

  return make


@pytest.fixture(scope="session")
def greedy():
  """`(config, params, prompts, image_token) -> [P, T]` most likely tokens."""

  def draw(config, params, prompts, image_token, length=64):
    sampling = Sampling(
      samples_per_prompt=1,
      max_tokens=length,
      end_token=-1,
      pad_token=0,
      image_token=image_token,
      temperature=0.0,
    )
    sample = jax.jit(partial(generate, config, sampling))
    return np.asarray(sample(params, prompts, jax.random.key(0)).tokens)

  return draw
