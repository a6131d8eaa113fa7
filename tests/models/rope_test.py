import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_mm.models import rope

THETA = 100.0


def test_against_complex_numbers():
  """Pair (i, i + E/2) is one complex number, turned by its angle."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 5, 3, 8), np.float32)
  positions = rng.integers(50, size=(2, 5))
  frequency = THETA ** (-np.arange(4) * 2 / 8)
  turn = np.exp(1j * positions[..., None] * frequency)[:, :, None]
  turned = (x[..., :4] + 1j * x[..., 4:]) * turn
  expected = np.concatenate([turned.real, turned.imag], axis=-1)
  got = rope.rotate(jnp.asarray(x), jnp.asarray(positions), theta=THETA)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_position_zero_changes_nothing():
  x = jnp.arange(8.0).reshape(1, 1, 1, 8)
  got = rope.rotate(x, jnp.zeros((1, 1), int), theta=THETA)
  np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize("shift", [1, 1000])
def test_dot_products_depend_on_the_distance_alone(shift):
  rng = np.random.default_rng(0)
  q, k = jnp.asarray(rng.standard_normal((2, 1, 6, 1, 8), np.float32))
  here = jnp.arange(6)[None]

  def products(positions):
    a = rope.rotate(q, positions, theta=THETA)
    b = rope.rotate(k, positions, theta=THETA)
    return np.einsum("bthe,bshe->ts", a, b)

  np.testing.assert_allclose(
    products(here), products(here + shift), atol=2e-3 if shift > 1 else 1e-5
  )


def test_angles_stay_float32_in_bfloat16():
  # 4097 is no bfloat16 number: a narrow angle would be one radian off.
  x = jnp.zeros((1, 1, 1, 2), jnp.bfloat16).at[..., 0].set(1)
  got = rope.rotate(x, jnp.full((1, 1), 4097), theta=THETA)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(got, float).ravel(), [np.cos(4097), np.sin(4097)], atol=4e-3
  )


def test_a_place_turns_half_of_the_pairs_by_row_and_half_by_column():
  """E = 8: pairs 0, 1 by the row, 2, 3 by the column, at 1 and theta^-1/2."""
  x = np.random.default_rng(0).standard_normal((1, 1, 1, 8)).astype(np.float32)
  got = rope.rotate_by_place(jnp.asarray(x), jnp.array([[[3, 5]]]), theta=100.0)
  turned = x[..., :4] + 1j * x[..., 4:]
  turned = turned * np.exp(1j * np.array([3, 0.3, 5, 0.5]))
  expected = np.concatenate([turned.real, turned.imag], -1)
  np.testing.assert_allclose(got, expected, atol=1e-5)
