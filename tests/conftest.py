"""Eight CPU devices for every test, set before jax starts."""

import dataclasses
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from jaxrl_mm import pytree  # noqa: E402
from jaxrl_mm.models import config, vlm  # noqa: E402


@pytest.fixture(scope="session")
def tiny():
  """The demo's model with 32 words, and four tokens a tile."""
  demo = config.digits(vocab=32)
  vision = dataclasses.replace(demo.vision, image_size=8, patch_size=2)
  return dataclasses.replace(demo, vision=vision)


@pytest.fixture(scope="session")
def params(tiny):
  """Weights for `tiny` without one zero bias or neutral scale, by numpy.

  They are large enough that the logits differ by more than rounding.
  """
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda key: vlm.init(tiny, key), jax.random.key(0))

  def fill(name, shape):
    noise = rng.standard_normal(shape.shape, np.float32)
    if name.endswith("scale"):
      return jnp.asarray(1 + 0.3 * noise)
    return jnp.asarray(noise * (0.3 if name.endswith("table") else 0.15))

  return pytree.map_with_name(fill, shapes)


@pytest.fixture(scope="module")
def quick_compile():
  """Little optimisation: tiny programs take longer to compile than to run."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
