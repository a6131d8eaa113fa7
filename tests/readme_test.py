"""The code in the README runs and does what it says."""

import re
from pathlib import Path

import jax.numpy as jnp

from jaxrl_mm import algorithms
from jaxrl_mm.data import sets

README = (Path(__file__).parents[1] / "README.md").read_text()


def section(title):
  return (
    README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    or (README.removeprefix(f"## {title}\n").partition("\n## ")[0])
  )


def test_example_learns(capsys):
  (code,) = re.findall(
    r"```python\n(.*?)```", section("Use it in your own project"), re.DOTALL
  )
  names = {}
  exec(compile(code, "README.md", "exec"), names)
  right = jnp.diagonal(names["policy"] - names["policy"].max(1, keepdims=True))
  assert (right == 0).all()
  probability = [
    float(x) for x in re.findall(r"[\d.]+\d", capsys.readouterr().out)
  ]
  assert len(probability) == 8 and min(probability) > 0.9
  assert float(names["state"][-1].effective_after) == 1


def test_table_names_every_algorithm():
  named = re.findall(r"^\| `(\w+)` \|", section("Algorithms"), re.MULTILINE)
  makers = {
    name
    for name, value in vars(algorithms).items()
    if getattr(value, "__annotations__", {}).get("return")
    is algorithms.Algorithm
  }
  assert set(named) == makers and len(named) == 12


def test_table_names_every_data_set():
  named = re.findall(
    r"^\| `([\w-]+)` \|", section("Published data sets"), re.MULTILINE
  )
  assert named == list(sets.SETS)
