"""InternVL against transformers, with weights of other seeds and pictures."""

import jax.numpy as jnp
import make_internvl as reference
import pytest
from transformers import InternVLConfig, InternVLForConditionalGeneration

from jaxrl_mm.structs import Prompts

pytestmark = [
  pytest.mark.usefixtures("quick_compile"),
  pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("case", reference.CASES)
def test_hidden_states_logits_gradients_and_64_tokens(
  case, from_torch, compare
):
  tokens, mask, pixels = reference.rows()
  tiles = (pixels.reshape(3, reference.TILES, -1).sum(-1) > 0).sum(1)
  model = InternVLForConditionalGeneration(
    InternVLConfig(image_token_id=reference.IMAGE, **reference.CASES[case])
  )
  arrays, _ = reference.results(
    model,
    tokens,
    mask,
    (),
    pixel_values=reference.normalised(pixels, tiles),
  )
  prompts = Prompts(
    jnp.asarray(tokens, jnp.int32),
    jnp.asarray(mask, bool),
    jnp.asarray(pixels),
    jnp.arange(3),
  )
  compare(*from_torch(model), arrays, prompts, reference.IMAGE)
