import dataclasses

import pytest

from jaxrl_mm.errors import InputError
from jaxrl_mm.models import config


def test_r1v2_has_the_published_geometry():
  c = config.r1v2_38b()
  assert (c.vision.side, c.vision.head_dim) == (32, 128)
  assert c.decoder.heads * c.decoder.head_dim == c.decoder.width


def test_digits_divides_by_two_devices_a_mesh_axis():
  c = config.digits(vocab=10)
  assert c.decoder.vocab == 10
  for size in (c.vision.mlp, c.decoder.kv_heads, c.decoder.width):
    assert size % 2 == 0


def test_equal_configs_are_one_static_argument():
  assert hash(config.digits(9)) == hash(config.digits(9))
  assert config.digits(9) != config.digits(8)


@pytest.mark.parametrize(
  "part, change, message",
  [
    ("vision", {"patch_size": 3}, "vision.image_size = 8 is not a multiple"),
    ("vision", {"heads": 3}, "vision.width = 64 is not a multiple of 3"),
    ("vision", {"norm": "batch"}, "norm is 'batch'; known are rms, layer"),
    ("vision", {"patch_size": 8}, "patches along a tile = 1 is not a multiple"),
    ("decoder", {"kv_heads": 3}, "decoder.heads = 4 is not a multiple of 3"),
  ],
)
def test_sizes_that_do_not_divide_are_named(part, change, message):
  c = config.digits()
  changed = dataclasses.replace(getattr(c, part), **change)
  with pytest.raises(InputError, match=message):
    dataclasses.replace(c, **{part: changed})
