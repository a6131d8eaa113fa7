import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import sharding
from jaxrl_mm.models import vlm
from jaxrl_mm.models.attention import Causal
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.structs import Prompts

pytestmark = pytest.mark.usefixtures("quick_compile")

IMAGE = 31  # id of the image placeholder
LAYOUTS = {
  "whole groups": [0, 0, 0, 0, 1, 1, 1, 1],
  "one group": [5] * 8,
  "all distinct": [7, 6, 5, 4, 3, 2, 1, 0],
  "replayed rows": [0, 9, 0, 0, 8, 1, 9, 1],
}
DISTINCT = {
  "whole groups": 2,
  "one group": 1,
  "all distinct": 8,
  "replayed rows": 4,
}


def _pictures(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(256, size=(*shape, 8, 8, 3)), jnp.uint8)


def _prompts(rows=2, padding=2, seed=0):
  """Prompts of different lengths, one picture of four tokens each."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, IMAGE, size=(rows, 8))
  tokens[:, 2:6] = IMAGE
  hidden = np.arange(8) < np.arange(rows)[:, None] % 2
  tokens[hidden] = 0
  fill = np.zeros((rows, padding), int)
  return Prompts(
    tokens=jnp.asarray(np.concatenate([fill, tokens], axis=1)),
    mask=jnp.asarray(np.concatenate([fill > 0, ~hidden], axis=1)),
    images=_pictures(rows, 1, seed=seed),
    group=jnp.arange(rows),
  )


def _completions(rows=2, length=6):
  rng = np.random.default_rng(1)
  kept = np.arange(length) < length - np.arange(rows)[:, None] % 3
  tokens = np.where(kept, rng.integers(1, IMAGE, size=(rows, length)), 0)
  return jnp.asarray(tokens), jnp.asarray(kept)


# --------------------------------------------------------- encode_distinct
def _value_and_gradient(encode, config):
  """Features, and the gradient of a loss in which every row counts its own."""

  def loss(trained, rest, images, *group):
    features = encode(config, trained | rest, images, *group)
    weight = jnp.arange(1.0, 1 + features.size).reshape(features.shape)
    return jnp.sum(features * weight / features.size), features

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _split(params):
  return (
    {name: params[name] for name in ("vision", "projector")},
    {name: params[name] for name in ("embedder", "decoder")},
  )


@pytest.fixture(scope="module")
def encoders(tiny):
  distinct = partial(vlm.encode_distinct, samples_per_prompt=4)
  return [
    _value_and_gradient(vlm.encode_images, tiny),
    _value_and_gradient(distinct, tiny),
  ]


def _assert_equal_encodings(got, expected):
  (_, features), gradient = got
  (_, expected_features), expected_gradient = expected
  np.testing.assert_allclose(features, expected_features, atol=1e-5, rtol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    gradient,
    expected_gradient,
  )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_encode_distinct_equals_encode_images(encoders, params, layout):
  group = jnp.array(LAYOUTS[layout])
  images = _pictures(10, 2)[group]
  every, distinct = encoders
  _assert_equal_encodings(
    distinct(*_split(params), images, group), every(*_split(params), images)
  )


def test_encode_distinct_on_a_mesh(encoders, tiny, params):
  """Four shards of two rows: the replayed rows differ within a shard."""
  mesh = sharding.make_mesh(2, 2, 2)
  distinct = partial(vlm.encode_distinct, samples_per_prompt=2)
  with jax.set_mesh(mesh):
    encode = _value_and_gradient(distinct, tiny)
    placed = jax.device_put(params, param_shardings(mesh, params))
    for layout in ("whole groups", "replayed rows"):
      group = jnp.array(LAYOUTS[layout])
      images = _pictures(10, 2)[group]
      expected = encoders[0](*_split(params), images)
      rows = sharding.to_device((images, group), mesh)
      _assert_equal_encodings(encode(*_split(placed), *rows), expected)


@pytest.mark.parametrize("samples, block", [(4, 2), (3, 2), (8, 1), (16, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_tower_runs_once_for_each_block_of_distinct_rows(
  monkeypatch, tiny, layout, samples, block
):
  sizes = []

  def counted(config, params, images):
    jax.debug.callback(lambda: sizes.append(images.shape[0]))
    return images.reshape(len(images), -1, 1).astype(jnp.float32)

  monkeypatch.setattr(vlm, "encode_images", counted)
  group = jnp.array(LAYOUTS[layout])
  images = _pictures(10, 1)[group]
  features = vlm.encode_distinct(tiny, {}, images, group, samples)
  jax.effects_barrier()
  np.testing.assert_array_equal(
    features[..., 0], np.asarray(images).reshape(8, -1)
  )
  assert sizes == [block] * -(-DISTINCT[layout] // block)


# ------------------------------------------------------------------- embed
def test_image_tokens_are_replaced_by_features_in_order(tiny, params):
  tokens = jnp.array([[3, IMAGE, IMAGE, 4], [IMAGE, 5, 6, IMAGE]])
  features = jnp.arange(2 * 3 * 64.0).reshape(2, 3, 64)
  table = params["embedder"]["table"]
  got = vlm.embed(tiny, params, tokens, features, IMAGE)
  expected = np.stack(
    [
      [table[3], features[0, 0], features[0, 1], table[4]],
      [features[1, 0], table[5], table[6], features[1, 1]],
    ]
  )
  np.testing.assert_array_equal(got, expected)


def test_without_features_every_token_is_a_word(tiny, params):
  tokens = jnp.array([[3, IMAGE]])
  got = vlm.embed(tiny, params, tokens, None, IMAGE)
  np.testing.assert_array_equal(got, params["embedder"]["table"][tokens])


def test_encode_images_keeps_tiles_in_order(tiny, params):
  images = _pictures(2, 3)
  together = vlm.encode_images(tiny, params, images)
  assert together.shape == (2, 12, 64)
  single = vlm.encode_images(tiny, params, images[1:, 2:])
  np.testing.assert_allclose(together[1:, 8:], single, atol=1e-5, rtol=1e-4)


def test_positions_by_hand():
  mask = jnp.array([[False, True, True]])
  prompts = Prompts(jnp.zeros((1, 3), int), mask, None, jnp.zeros(1, int))
  of_prompt, behind = vlm.positions(prompts, 2)
  np.testing.assert_array_equal(of_prompt, [[0, 0, 1]])
  np.testing.assert_array_equal(behind, [[2, 3]])
  plane = jnp.array([[[0, 0, 0], [0, 0, 0], [0, 4, 2]]])
  of_prompt, behind = vlm.positions(prompts._replace(positions=plane), 2)
  np.testing.assert_array_equal(of_prompt, plane)
  np.testing.assert_array_equal(behind, [[[5, 5, 5], [6, 6, 6]]])


def test_a_tied_head_is_the_table():
  table, other = jnp.zeros((3, 2)), jnp.ones((3, 2))
  assert vlm.head({"embedder": {"table": table}}) is table
  assert vlm.head({"embedder": {"table": table, "head": other}}) is other


# --------------------------------------------------------- completion_logp
@pytest.fixture(scope="module")
def logp(tiny):
  """`completion_logp`, compiled once for each set of shapes and options."""
  compiled = jax.jit(
    vlm.completion_logp,
    static_argnums=0,
    static_argnames=(
      "image_token",
      "samples_per_prompt",
      "temperature",
      "chunk",
    ),
  )

  def run(params, *arrays, config=tiny, **options):
    return compiled(config, params, *arrays, image_token=IMAGE, **options)

  return run


@pytest.fixture(scope="module")
def forward(tiny, params):
  """Logits of one unpadded row: `(ids, its picture) -> [T, V]`."""

  @jax.jit
  def run(ids, images):
    features = vlm.encode_images(tiny, params, images)
    x = vlm.embed(tiny, params, ids, features, IMAGE)
    everything = jnp.ones(ids.shape, bool)
    hidden, _ = vlm.run_decoder(
      tiny, params, x, jnp.arange(16)[None], Causal(everything)
    )
    return hidden[0] @ vlm.head(params).T

  # What follows a token cannot reach it, so one length serves all rows.
  return lambda ids, images: np.asarray(
    run(jnp.pad(ids, (0, 16 - len(ids)))[None], images), np.float64
  )[: len(ids)]


def _row_by_row(forward, prompts, tokens, mask, temperature):
  """Log-probs and entropies from one unpadded forward pass a row."""
  logp, entropy = np.zeros(tokens.shape), np.zeros(tokens.shape)
  for b in range(len(tokens)):
    start, count = int(prompts.mask[b].sum()), int(mask[b].sum())
    ids = [prompts.tokens[b][prompts.mask[b]], tokens[b, :count]]
    logits = forward(jnp.concatenate(ids), prompts.images[b : b + 1])
    logits = logits[start - 1 : start - 1 + count] / temperature
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    logp[b, :count] = np.log(p[np.arange(count), tokens[b, :count]])
    entropy[b, :count] = -(p * np.log(p)).sum(-1)
  return logp, entropy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_completion_logp_equals_one_forward_pass_a_row(
  params, logp, forward, temperature
):
  prompts, (tokens, mask) = _prompts(), _completions()
  got = logp(params, prompts, tokens, mask, temperature=temperature)
  expected = _row_by_row(forward, prompts, tokens, mask, temperature)
  for mine, theirs in zip(got, expected):
    np.testing.assert_allclose(np.where(mask, mine, 0), theirs, atol=1e-4)


def test_devices_along_the_sequence_axis_share_the_tokens_of_a_row(
  tiny, params, logp
):
  prompts = _prompts()._replace(images=None)
  rows = prompts, *_completions()
  expected = logp(params, *rows)
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:4], sequence=4)
  placed = jax.device_put((params, *rows), sharding.replicated(mesh))
  with jax.set_mesh(mesh):
    run = jax.jit(partial(vlm.completion_logp, tiny, image_token=IMAGE))
    compiled = run.lower(*placed).compile()
    got = compiled(*placed)
  for mine, theirs in zip(got, expected):
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
  # Of the 16 tokens each device runs four through its MLP.
  assert "f32[2,4,128]" in compiled.as_text()
  assert "f32[2,16,128]" not in compiled.as_text()


def test_packed_rows_have_the_logp_and_gradient_of_whole_rows(tiny, params):
  """With three axes of positions, as Qwen2.5-VL has them."""
  group = np.array([4, 4, 4, 6, 4, 5, 6, 6])
  prompts = jax.tree.map(lambda x: x[group - 4], _prompts(rows=3))
  where = np.random.default_rng(0).integers(9, size=(*prompts.mask.shape, 3))
  where = jnp.asarray(where[group - 4])
  prompts = prompts._replace(positions=where, group=jnp.asarray(group))
  decoder = dataclasses.replace(tiny.decoder, rope_sections=(4, 2, 2))
  tiny = dataclasses.replace(tiny, decoder=decoder)
  tokens, mask = _completions(rows=8)
  mask = mask.at[6].set(False)  # a row that pads the batch
  shared = np.sum(np.asarray(prompts.mask)[[1, 2, 7]])
  needed = int(prompts.mask.sum() - shared + mask.sum())

  @partial(jax.jit, static_argnums=1)
  def run(params, room):
    def loss(params):
      logp, entropy = vlm.completion_logp(
        tiny, params, prompts, tokens, mask, image_token=IMAGE, room=room
      )
      logp, entropy = (jnp.where(mask, x, 0) for x in (logp, entropy))
      return jnp.sum(jnp.sin(logp) + entropy), (logp, entropy)

    return jax.grad(loss, has_aux=True)(params)

  check = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  jax.tree.map(check, run(params, needed + 3), run(params, 0))
  _, (lost, _) = run(params, needed - 1)
  assert np.isnan(lost[0, 0])


def test_more_left_padding_changes_nothing(params, logp):
  tokens, mask = _completions()
  narrow, _ = logp(params, _prompts(), tokens, mask)
  wide, _ = logp(params, _prompts(padding=5), tokens, mask)
  np.testing.assert_allclose(wide, narrow, atol=1e-5)


def test_neither_the_chunk_nor_the_sharing_of_pictures_changes_anything(
  params, logp
):
  prompts = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), _prompts())
  tokens, mask = _completions(rows=4)
  whole = logp(params, prompts, tokens, mask)
  parts = logp(params, prompts, tokens, mask, chunk=4, samples_per_prompt=2)
  for a, b in zip(whole, parts):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_tokens_after_the_mask_do_not_count(params, logp):
  tokens, mask = _completions()
  clean, _ = logp(params, _prompts(), tokens, mask)
  dirty, _ = logp(params, _prompts(), jnp.where(mask, tokens, 9), mask)
  np.testing.assert_array_equal(
    np.where(mask, clean, 0), np.where(mask, dirty, 0)
  )


def test_bfloat16_runs_and_stays_near_float32(tiny, params, logp):
  narrow = dataclasses.replace(tiny, dtype="bfloat16", param_dtype="bfloat16")
  weights = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
  prompts, (tokens, mask) = _prompts(), _completions()
  wide, _ = logp(params, prompts, tokens, mask)
  got, entropy = logp(weights, prompts, tokens, mask, config=narrow)
  assert got.dtype == entropy.dtype == jnp.float32
  assert np.abs(np.where(mask, got - wide, 0)).max() < 0.3


def _avals(jaxpr):
  """Every array a program makes, inside loops and branches too."""
  for equation in jaxpr.eqns:
    yield from (variable.aval for variable in equation.outvars)
    for inner in jax.tree.leaves(list(equation.params.values())):
      if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
        yield from _avals(getattr(inner, "jaxpr", inner))


def test_logits_of_all_tokens_never_exist_at_once(tiny, params):
  """Arrays whose last axis is the vocabulary hold one chunk of logits."""
  rows, length, chunk, vocab = 2, 12, 3, 37
  decoder = dataclasses.replace(tiny.decoder, vocab=vocab)
  config = dataclasses.replace(tiny, decoder=decoder)
  shapes = jax.eval_shape(lambda key: vlm.init(config, key), jax.random.key(0))
  arrays = _prompts(), *_completions(rows, length)

  def loss(params):
    both = vlm.completion_logp(
      config, params, *arrays, image_token=IMAGE, chunk=chunk
    )
    return sum(jnp.sum(x) for x in both)

  jaxpr = jax.make_jaxpr(jax.grad(loss))(shapes).jaxpr
  logits = [aval.shape for aval in _avals(jaxpr) if aval.shape[-1:] == (vocab,)]
  assert (rows, chunk, vocab) in logits
  assert max(np.prod(shape) for shape in logits) == rows * chunk * vocab
