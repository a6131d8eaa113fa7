"""The whole model as functions of `(config, params, arrays)`.

`params` is a plain dict: `vision`, `projector`, `embedder`, `decoder`,
`value_head`; a model of text alone lacks the first two, most lack the last.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from jaxrl_mm import masked, sharding
from jaxrl_mm.models import packed, qwen_vit
from jaxrl_mm.models.attention import Cache, Causal
from jaxrl_mm.models.config import ModelConfig, VisionConfig
from jaxrl_mm.models.decoder import KV, Decoder, Embedder, Mask, Positions
from jaxrl_mm.models.internvit import InternViT, Projector
from jaxrl_mm.models.layers import Einsum
from jaxrl_mm.models.qwen_vit import Merger, QwenViT
from jaxrl_mm.structs import Patches, Prompts

Params = dict
Images = UInt8[Array, "B N height width channels"] | Patches


def init(config: ModelConfig, key: PRNGKeyArray) -> Params:
  """Random weights. Under `jax.eval_shape` it costs nothing at any size."""
  keys = jax.random.split(key, 5)
  v = config.vision
  x = jnp.zeros((1, 1, config.decoder.width), config.dtype)
  ids = jnp.zeros((1, 1), jnp.int32)
  mask = Causal(jnp.ones((1, 1), bool))
  trees = {
    "embedder": Embedder(config).init(keys[2], ids),
    "decoder": Decoder(config).init(keys[3], x, ids, mask),
  }
  if isinstance(v, VisionConfig):
    images = jnp.zeros((1, v.image_size, v.image_size, v.channels), jnp.uint8)
    patches = jnp.zeros((1, v.side, v.side, v.width), config.dtype)
    trees["vision"] = InternViT(config).init(keys[0], images)
    trees["projector"] = Projector(config).init(keys[1], patches)
  elif v is not None:
    images = _one_window(config)
    patches = jnp.zeros((*images.place.shape[:3], v.width), config.dtype)
    trees["vision"] = QwenViT(config).init(keys[0], images)
    trees["projector"] = Merger(config).init(keys[1], patches)
  if config.value_head:
    trees["value_head"] = _value_head(config).init(keys[4], x[:, 0])
  return {name: tree["params"] for name, tree in trees.items()}


def _one_window(config):
  c = config.vision
  one, patches = (1, 1), c.window**2
  pixels = (*one, patches, c.frames, c.patch_size, c.patch_size, c.channels)
  return Patches(
    pixels=jnp.zeros(pixels, jnp.uint8),
    place=jnp.zeros((*one, patches, 2), jnp.int32),
    frame=jnp.zeros(one, jnp.int32),
    order=jnp.zeros(one, jnp.int32),
  )


def _value_head(config):
  shape, dtype = (config.decoder.width,), config.param_dtype
  return Einsum("bd,d->b", shape, (1,), dtype)


def encode_images(
  config: ModelConfig,
  params: Params,
  images: Images,
) -> Float[Array, "B M D"]:
  """Image tokens of each row: of tile after tile, M = N * tokens_per_tile,
  or of the `Patches` in their order."""
  if isinstance(images, Patches):
    return qwen_vit.encode(config, params, images)
  flat = images.reshape(-1, *images.shape[2:])
  x = InternViT(config).apply({"params": params["vision"]}, flat)
  x = Projector(config).apply({"params": params["projector"]}, x)
  return x.reshape(images.shape[0], -1, x.shape[-1])


def encode_distinct(
  config: ModelConfig,
  params: Params,
  images: Images,
  group: Int[Array, " B"],
  samples_per_prompt: int,
) -> Float[Array, "B M D"]:
  """As `encode_images`, running the tower once for each distinct group.

  Rows of one group hold the same images. The first row of each group is
  packed to the front, and the tower runs over packed blocks of
  `B / samples_per_prompt` rows until no distinct row is left: one block when
  all groups are whole, more when replayed rows bring images of their own.
  Rows are compared within a batch shard only, so no picture travels.
  """
  shards = sharding.batch_shards()
  rows = group.shape[0] // shards
  split = lambda x: x.reshape(shards, rows, *x.shape[1:])
  order, count, index = jax.vmap(_pack_distinct)(split(group))
  block = max(rows // samples_per_prompt, 1)
  blocks = -(-rows // block)

  def pack(x):
    x = jax.vmap(lambda x, i: x[i])(split(x), order)
    pad = [(0, 0), (0, blocks * block - rows)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, pad).reshape(shards, blocks, block, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  def encode(x):
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), x)
    features = encode_images(config, params, flat)
    return features.reshape(shards, block, *features.shape[1:])

  def body(_, step):
    i, x = step
    shape = jax.eval_shape(encode, x)
    skip = lambda _: jnp.zeros(shape.shape, shape.dtype)
    return None, jax.lax.cond(i * block < jnp.max(count), encode, skip, x)

  steps = (jnp.arange(blocks), jax.tree.map(pack, images))
  _, features = jax.lax.scan(body, None, steps)
  features = jnp.moveaxis(features, 0, 1)
  features = features.reshape(shards, blocks * block, *features.shape[3:])
  features = jax.vmap(lambda x, i: x[i])(features, index)
  return features.reshape(-1, *features.shape[2:])


def _pack_distinct(group):
  """Order that puts first rows of groups in front, their number, the way back.

  `order[index[i]]` is the first row of the group of row i.
  """
  first = jnp.argmax(group[:, None] == group[None, :], axis=1)
  is_first = first == jnp.arange(group.shape[0])
  order = jnp.argsort(~is_first, stable=True)
  index = (jnp.cumsum(is_first) - 1)[first]
  return order, jnp.sum(is_first), index


def embed(
  config: ModelConfig,
  params: Params,
  tokens: Int[Array, "B S"],
  features: Float[Array, "B M D"] | None,
  image_token: int,
) -> Float[Array, "B S D"]:
  """Token embeddings, with the i-th image token replaced by feature i."""
  x = Embedder(config).apply({"params": params["embedder"]}, tokens)
  if features is None:
    return x
  is_image = tokens == image_token
  index = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, features.shape[1] - 1)
  placed = jnp.take_along_axis(features, index[..., None], axis=1)
  return jnp.where(is_image[..., None], placed.astype(x.dtype), x)


def positions(
  prompts: Prompts, length: int
) -> tuple[Int[Array, "B S ..."], Int[Array, "B T ..."]]:
  """Rotary positions of the prompts and of `length` tokens behind each.

  Without `prompts.positions` both count the real tokens: 0, 1, 2, ... With
  them what follows counts on from the largest, the same on all axes.

  Returns:
    [B, S] and [B, length], or [B, S, 3] and [B, length, 3].
  """
  of_prompt = prompts.positions
  if of_prompt is None:
    of_prompt = jnp.maximum(jnp.cumsum(prompts.mask, axis=1) - 1, 0)
  behind = jnp.arange(1, length + 1)
  if of_prompt.ndim == 2:
    return of_prompt, of_prompt[:, -1:] + behind
  last = jnp.max(of_prompt, axis=(1, 2), initial=0)
  after = last[:, None, None] + behind[:, None]
  return of_prompt, jnp.broadcast_to(after, (*after.shape[:2], 3))


def run_decoder(
  config: ModelConfig,
  params: Params,
  x: Float[Array, "B T D"],
  position: Positions,
  mask: Mask,
  cache: Cache | None = None,
) -> tuple[Float[Array, "B T D"], KV]:
  """`Decoder.__call__` on the plain dict."""
  return Decoder(config).apply(
    {"params": params["decoder"]}, x, position, mask, cache
  )


def head(params: Params) -> Float[Array, "V D"]:
  """Output embeddings; the input ones where the model ties them."""
  embedder = params["embedder"]
  return embedder.get("head", embedder["table"])


def hidden_states(
  config: ModelConfig,
  params: Params,
  prompts: Prompts,
  tokens: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  *,
  image_token: int,
  samples_per_prompt: int = 1,
  room: int = 0,
) -> Float[Array, "B length D"]:
  """Final hidden states of prompts and completions, length = S + T.

  The arguments are those of `completion_logp`. What stands at padding is
  finite.
  """
  features = None
  shards = sharding.batch_shards()
  if room:
    room = min(room, (tokens.size + prompts.tokens.size) // shards)
    # Pictures one by one: rows that pad the batch have none of their own.
    samples_per_prompt = len(tokens) // shards
  if prompts.images is not None:
    features = encode_distinct(
      config, params, prompts.images, prompts.group, samples_per_prompt
    )
  embed_ids = partial(embed, config, params, image_token=image_token)
  x = jnp.concatenate(
    [
      embed_ids(prompts.tokens, features),
      embed_ids(tokens, None),
    ],
    axis=1,
  )
  valid = jnp.concatenate([prompts.mask, mask], axis=1)
  x = sharding.constrain(x, "batch", "length", None)
  where = jnp.concatenate(positions(prompts, tokens.shape[1]), axis=1)
  if not room:
    return run_decoder(config, params, x, where, Causal(valid))[0]
  p = packed.plan(valid, prompts.group, prompts.tokens.shape[1], room)
  x = sharding.constrain(packed.pack(x, p), "batch", "length", None)
  hidden, _ = run_decoder(config, params, x, packed.pack(where, p), p)
  # Tokens without room would be lost in silence; so the step is a bad one.
  return packed.unpack(jnp.where(p.fits, hidden, jnp.nan), p)


def completion_logp(
  config: ModelConfig,
  params: Params,
  prompts: Prompts,
  tokens: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  *,
  image_token: int,
  samples_per_prompt: int = 1,
  temperature: float = 1.0,
  room: int = 0,
  chunk: int = 256,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Log-prob and entropy (nats) of each completion token given its prompt.

  Args:
    config, params: the model.
    prompts: [B, S] left-padded prompts with their pictures.
    tokens, mask: [B, T] right-padded completions.
    image_token: id of the image placeholder.
    samples_per_prompt: how many rows usually share a picture.
    temperature: of the sampling distribution.
    room: tokens that a batch shard runs through the decoder, see `packed`:
      padding never, and the prompt of neighbours with the same group once.
      Where they are more, all is NaN. 0 runs whole rows.
    chunk: columns of T whose logits exist at a time.
  """
  hidden = hidden_states(
    config,
    params,
    prompts,
    tokens,
    mask,
    image_token=image_token,
    samples_per_prompt=samples_per_prompt,
    room=room,
  )
  start = prompts.tokens.shape[1] - 1
  predicting = hidden[:, start : start + tokens.shape[1]]
  predicting = sharding.constrain(predicting, "batch", "length", None)
  return masked.token_logp(
    predicting, head(params), tokens, temperature=temperature, chunk=chunk
  )


def score(
  config: ModelConfig,
  params: Params,
  prompts: Prompts,
  tokens: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  *,
  image_token: int,
  samples_per_prompt: int = 1,
  room: int = 0,
) -> Float[Array, " B"]:
  """What the value head makes of each answer, unbounded, higher is better.

  A linear map of the hidden state of the last real token, as in Skywork-VL
  Reward (https://arxiv.org/abs/2505.07263). That model reads the whole chat:
  its template ends an answer with the end-of-turn token and a new line, which
  belong to `tokens`.

  Args:
    config, params: a model with `value_head`.
    prompts, tokens, mask, image_token, samples_per_prompt, room: see
      `completion_logp`.
  """
  hidden = hidden_states(
    config,
    params,
    prompts,
    tokens,
    mask,
    image_token=image_token,
    samples_per_prompt=samples_per_prompt,
    room=room,
  )
  last = prompts.tokens.shape[1] - 1 + jnp.sum(mask, axis=1)
  ending = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
  return _value_head(config).apply(
    {"params": params["value_head"]}, ending.astype(jnp.float32)
  )
