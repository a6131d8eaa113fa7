import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm import sharding
from jaxrl_mm.models import vlm
from jaxrl_mm.models.attention import Causal
from jaxrl_mm.models.param_axes import param_shardings
from jaxrl_mm.sampling.decode import Sampling
from jaxrl_mm.sampling.generate import generate
from jaxrl_mm.structs import Prompts

pytestmark = pytest.mark.usefixtures("quick_compile")

IMAGE, END, PAD = 31, 30, 29
PROMPTS, SAMPLES, TOKENS = 4, 2, 10


def _prompts(padding=1):
  """Four prompts of 6 to 7 tokens, each with a picture of four tokens."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, END, size=(PROMPTS, 7))
  tokens[:, 2:6] = IMAGE
  hidden = np.arange(7) < np.arange(PROMPTS)[:, None] % 2
  tokens[hidden] = 0
  fill = np.zeros((PROMPTS, padding), int)
  images = rng.integers(256, size=(PROMPTS, 1, 8, 8, 3))
  return Prompts(
    tokens=jnp.asarray(np.concatenate([fill, tokens], axis=1)),
    mask=jnp.asarray(np.concatenate([fill > 0, ~hidden], axis=1)),
    images=jnp.asarray(images, jnp.uint8),
    group=jnp.arange(PROMPTS),
  )


@pytest.fixture(scope="module")
def params(params):
  """Weights with which the end token is likely, in some places."""
  embedder = params["embedder"]
  head = embedder["head"].at[END].multiply(2.5)
  return params | {"embedder": embedder | {"head": head}}


@pytest.fixture(scope="module")
def draw(tiny):
  """`generate`, compiled once for each set of shapes and options."""

  def run(params, prompts, key, **options):
    fixed = dict(
      samples_per_prompt=SAMPLES,
      max_tokens=TOKENS,
      end_token=END,
      pad_token=PAD,
      image_token=IMAGE,
    )
    sampling = Sampling(**fixed | options)
    return generate(tiny, sampling, params, prompts, key)

  names = ("temperature", "top_k", "top_p", "end_token")
  compiled = jax.jit(run, static_argnames=names)
  return lambda *arrays, seed=0, **options: compiled(
    *arrays, jax.random.key(seed), **options
  )


@pytest.fixture(scope="module")
def score(tiny):
  """The trainer's log-probs of completions, G rows a prompt."""

  def run(params, prompts, drawn, temperature):
    rows = jax.tree.map(lambda x: jnp.repeat(x, SAMPLES, axis=0), prompts)
    return vlm.completion_logp(
      tiny,
      params,
      rows,
      drawn.tokens,
      drawn.mask,
      image_token=IMAGE,
      samples_per_prompt=SAMPLES,
      temperature=temperature,
    )[0]

  return jax.jit(run, static_argnames="temperature")


@pytest.fixture(scope="module")
def drawn(draw, params):
  """Completions of which some end early and some are cut."""
  return draw(params, _prompts(), temperature=0.7)


def test_a_row_ends_with_the_end_token_and_is_empty_after_it(drawn):
  tokens, mask, logp = (np.asarray(x) for x in drawn)
  assert tokens.shape == (PROMPTS * SAMPLES, TOKENS)
  lengths = mask.sum(1)
  assert lengths.min() < TOKENS == lengths.max()
  np.testing.assert_array_equal(mask, np.arange(TOKENS) < lengths[:, None])
  for row, length in zip(tokens, lengths):
    assert END not in row[: length - 1]
    assert length == TOKENS or row[length - 1] == END
  assert (tokens[~mask] == PAD).all() and (logp[~mask] == 0).all()
  assert (logp[mask] < 0).all()


def test_the_samples_of_a_prompt_differ(drawn):
  pairs = np.asarray(drawn.tokens).reshape(PROMPTS, SAMPLES, TOKENS)
  assert (pairs[:, 0] != pairs[:, 1]).any(axis=1).all()


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_samplers_logp_is_the_trainers(draw, score, params, temperature):
  prompts = _prompts()
  drawn = draw(params, prompts, temperature=temperature)
  expected = score(params, prompts, drawn, temperature)
  np.testing.assert_allclose(
    drawn.logp, np.where(drawn.mask, expected, 0), atol=1e-5
  )


def test_greedy_decoding_equals_the_argmax_of_the_plain_forward(
  tiny, draw, params
):
  """Prefill and caches against one causal pass over prompt and answer."""
  prompts = _prompts()
  drawn = draw(params, prompts, temperature=0.0)

  @jax.jit
  def argmax(prompts, tokens, mask):
    features = vlm.encode_images(tiny, params, prompts.images)
    x = vlm.embed(tiny, params, prompts.tokens, features, IMAGE)
    # In an answer the placeholder is a word like any other.
    words = params["embedder"]["table"][tokens]
    x = jnp.concatenate([x, words], axis=1)
    valid = jnp.concatenate([prompts.mask, mask], axis=1)
    where = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    hidden, _ = vlm.run_decoder(tiny, params, x, where, Causal(valid))
    return jnp.argmax(hidden @ vlm.head(params).T, axis=-1)

  for sample in range(SAMPLES):
    tokens, mask = drawn.tokens[sample::SAMPLES], drawn.mask[sample::SAMPLES]
    start = prompts.tokens.shape[1] - 1
    expected = argmax(prompts, tokens, mask)[:, start : start + TOKENS]
    np.testing.assert_array_equal(tokens, np.where(mask, expected, PAD))


def test_greedy_logp_is_of_the_plain_softmax(draw, score, params):
  prompts = _prompts()
  drawn = draw(params, prompts, temperature=0.0)
  expected = score(params, prompts, drawn, 1.0)
  np.testing.assert_allclose(
    drawn.logp, np.where(drawn.mask, expected, 0), atol=1e-5
  )


def test_more_left_padding_changes_nothing(draw, drawn, params):
  wide = draw(params, _prompts(padding=6), temperature=0.7)
  np.testing.assert_array_equal(wide.tokens, drawn.tokens)
  np.testing.assert_array_equal(wide.mask, drawn.mask)
  np.testing.assert_allclose(wide.logp, drawn.logp, atol=1e-5)


def test_a_row_does_not_depend_on_the_other_rows(draw, drawn, params):
  """The last two prompts become others; the rows of the first two stay."""
  prompts = _prompts()
  other = prompts._replace(
    tokens=prompts.tokens.at[2:, -1].set(7),
    images=prompts.images.at[2:].set(255),
  )
  got = draw(params, other, temperature=0.7)
  mine = slice(0, 2 * SAMPLES)
  np.testing.assert_array_equal(got.tokens[mine], drawn.tokens[mine])
  np.testing.assert_allclose(got.logp[mine], drawn.logp[mine], atol=1e-6)
  assert (got.tokens != drawn.tokens).any()


def test_the_picture_matters(draw, drawn, params):
  prompts = _prompts()
  other = prompts._replace(images=255 - prompts.images)
  got = draw(params, other, temperature=0.7)
  assert (got.tokens != drawn.tokens).any(axis=1).all()


def test_several_pictures_of_a_prompt(draw, score, params):
  """Two tiles with four tokens each, words between and behind them."""
  rng = np.random.default_rng(1)
  tokens = rng.integers(1, END, size=(PROMPTS, 12))
  tokens[:, [*range(1, 5), *range(7, 11)]] = IMAGE
  prompts = Prompts(
    tokens=jnp.asarray(tokens),
    mask=jnp.ones(tokens.shape, bool),
    images=jnp.asarray(rng.integers(256, size=(4, 2, 8, 8, 3)), jnp.uint8),
    group=jnp.arange(PROMPTS),
  )
  drawn = draw(params, prompts, temperature=0.7)
  expected = score(params, prompts, drawn, 0.7)
  np.testing.assert_allclose(
    drawn.logp, np.where(drawn.mask, expected, 0), atol=1e-5
  )
  second = prompts.images.at[:, 1].set(255 - prompts.images[:, 1])
  other = draw(params, prompts._replace(images=second), temperature=0.7)
  assert (other.tokens != drawn.tokens).any(axis=1).mean() > 0.5


def test_the_key_decides(draw, drawn, params):
  again = draw(params, _prompts(), temperature=0.7)
  np.testing.assert_array_equal(again.tokens, drawn.tokens)
  other = draw(params, _prompts(), temperature=0.7, seed=1)
  # Not every row: one may end at once with both keys.
  assert (other.tokens != drawn.tokens).any(axis=1).mean() > 0.5


def test_the_mesh_changes_no_token(draw, drawn, params):
  mesh = sharding.make_mesh(2, 2, 2)
  with jax.set_mesh(mesh):
    weights = jax.device_put(params, param_shardings(mesh, params))
    prompts = sharding.to_device(_prompts(), mesh)
    got = draw(weights, prompts, temperature=0.7)
  np.testing.assert_array_equal(got.tokens, drawn.tokens)
  np.testing.assert_array_equal(got.mask, drawn.mask)
  np.testing.assert_allclose(got.logp, drawn.logp, atol=3e-5)


def test_top_k_of_one_is_greedy(draw, params):
  greedy = draw(params, _prompts(), temperature=0.0)
  one = draw(params, _prompts(), temperature=1.0, top_k=1)
  np.testing.assert_array_equal(one.tokens, greedy.tokens)


def test_decoding_stops_when_every_row_has_ended(draw, params, monkeypatch):
  """Equal prompts decoded greedily, with a token of theirs as the end."""
  steps = []
  run = vlm.run_decoder

  def counted(config, params, x, position, mask, cache=None):
    if cache is not None:
      jax.debug.callback(lambda: steps.append(1))
    return run(config, params, x, position, mask, cache)

  monkeypatch.setattr(vlm, "run_decoder", counted)
  first = _prompts()
  first = jax.tree.map(
    lambda x: jnp.tile(x[:1], (4,) + (1,) * (x.ndim - 1)), first
  )
  greedy = draw(params, first, temperature=0.0, end_token=-1)
  jax.effects_barrier()
  assert len(steps) == TOKENS
  steps.clear()
  end = int(greedy.tokens[0, 2])
  length = list(np.asarray(greedy.tokens[0])).index(end) + 1
  stopped = draw(params, first, temperature=0.0, end_token=end)
  jax.effects_barrier()
  assert len(steps) == length < TOKENS
  np.testing.assert_array_equal(stopped.mask.sum(1), length)
