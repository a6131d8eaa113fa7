"""What importing the losses and algorithms brings with it."""

import subprocess
import sys

import pytest

HEAVY = "flax", "grain", "orbax", "transformers", "openai", "math_verify"


@pytest.mark.parametrize(
  "module", ["jaxrl_mm", "jaxrl_mm.losses", "jaxrl_mm.algorithms"]
)
def test_light_modules_import_nothing_heavy(module):
  program = f"import sys, {module}; print(*sys.modules)"
  run = subprocess.run(
    [sys.executable, "-W", "error", "-c", program],
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  loaded = set(run.stdout.split())
  assert "jaxrl_mm.losses.policy" in loaded
  assert loaded.isdisjoint(HEAVY)
