"""The code in the README runs and does what it says."""

import re
from pathlib import Path

import jax.numpy as jnp

from jaxrl_mm import algorithms
from jaxrl_mm.data import sets
from jaxrl_mm.evaluate import __main__ as evaluation
from jaxrl_mm.evaluate.benchmarks import BENCHMARKS

README = (Path(__file__).parents[1] / "README.md").read_text()


def section(title):
  return (
    README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    or (README.removeprefix(f"## {title}\n").partition("\n## ")[0])
  )


def test_example_learns(capsys, quick_compile):
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


def test_table_names_every_benchmark_and_its_folder():
  text = section("Benchmarks")
  named = re.findall(r"^\| `(\w+)` \| ([^|]*)", text, re.MULTILINE)
  assert [name for name, _ in named] == list(BENCHMARKS)
  for name, folder in named:
    hub = BENCHMARKS[name].hub.removeprefix("github.com/")
    assert hub.partition("<")[0] in folder


def test_commands_are_understood():
  commands = section("Benchmarks").replace("\\\n", "")
  found = re.findall(r"^python -m jaxrl_mm.evaluate (.*)", commands, re.M)
  assert len(found) == 6
  for command in found:
    args = evaluation.parse(command.split())
    evaluation.check(args)
    assert set(args.benchmark) <= BENCHMARKS.keys()


def test_table_names_every_data_set():
  named = re.findall(
    r"^\| `([\w-]+)` \|", section("Published data sets"), re.MULTILINE
  )
  assert named == list(sets.SETS)
