"""The order of the layers, read from the imports themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxrl_mm

ROOT = Path(jaxrl_mm.__file__).parent
PACKAGE = ROOT.name

# A unit is a folder or a module directly under the package. It imports only
# from lower layers and from itself.
LAYERS = {
  0: ("errors", "structs", "pytree", "masked"),
  1: ("sharding",),
  2: ("models", "losses", "rewards", "data"),
  3: (
    "algorithms",
    "sampling",
    "optimizer",
    "train_state",
    "checkpoint",
    "preemption",
    "metrics",
  ),
  4: ("rollout",),
  5: ("train",),
  6: ("evaluate", "report"),
  7: ("experiment", "summary"),
  8: ("weights", "inputs"),
  9: ("preflight",),
  10: ("run",),
  11: ("main", "convert", "sample", "__init__", "__main__"),
}
LEVEL = {unit: level for level, units in LAYERS.items() for unit in units}

# A heavy library -> the only units that may import it.
HOMES = {
  "flax": {"models"},
  "grain": {"data"},
  "orbax": {"checkpoint"},
  "ml_collections": {"experiment", "main"},
  "torch": set(),
}

FILES = sorted(ROOT.rglob("*.py"))


def _module(path: Path) -> str:
  """`jaxrl_mm/models/vlm.py` -> `jaxrl_mm.models.vlm`."""
  parts = path.relative_to(ROOT.parent).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in FILES}


def _imports(
  node: ast.AST, top: bool = True
) -> Iterator[tuple[str, int, bool]]:
  """(imported name, line, whether at the top of the module)."""
  for child in ast.iter_child_nodes(node):
    if isinstance(child, ast.Import):
      for name in child.names:
        yield name.name, child.lineno, top
    elif isinstance(child, ast.ImportFrom):
      assert child.level == 0, f"line {child.lineno}: a relative import"
      for name in child.names:
        yield f"{child.module}.{name.name}", child.lineno, top
    else:
      yield from _imports(child, top=False)


def _unit(module: str) -> str:
  """`jaxrl_mm.models.vlm` -> `models`; a folder's program is no part of it."""
  _, *parts = [*module.split("."), "__init__"]
  return "__main__" if "__main__" in parts else parts[0]


def _own(name: str) -> str | None:
  """The module of this package that `name` means, if it means one."""
  while name.split(".")[0] == PACKAGE:
    if name in MODULES:
      return name
    name = name.rpartition(".")[0]
  return None


by_file = pytest.mark.parametrize(
  "path", FILES, ids=lambda path: str(path.relative_to(ROOT))
)


@by_file
def test_a_module_imports_only_from_lower_layers(path):
  unit = _unit(_module(path))
  assert unit in LEVEL, f"give '{unit}' a layer in this file and CONTRIBUTING"
  for name, line, _ in _imports(ast.parse(path.read_text())):
    module = _own(name)
    other = module and _unit(module)
    if other is not None and other != unit:
      assert LEVEL[other] < LEVEL[unit], f"{path}:{line}: {unit} -> {other}"


@by_file
def test_each_heavy_library_has_one_home(path):
  unit = _unit(_module(path))
  for name, line, _ in _imports(ast.parse(path.read_text())):
    library = name.split(".")[0]
    if library in HOMES:
      assert unit in HOMES[library], f"{path}:{line}: {library} in {unit}"


@by_file
def test_imports_stand_at_the_top(path):
  for name, line, top in _imports(ast.parse(path.read_text())):
    assert top, f"{path}:{line}: {name} is imported inside something"


def test_no_module_imports_itself_through_others():
  edges = {
    module: {
      own
      for name, *_ in _imports(ast.parse(path.read_text()))
      if (own := _own(name)) and own != module
    }
    for module, path in MODULES.items()
  }
  done = set()

  def visit(module, trail):
    assert module not in trail, " -> ".join([*trail, module])
    if module not in done:
      for other in edges[module]:
        visit(other, (*trail, module))
      done.add(module)

  for module in edges:
    visit(module, ())


def test_the_checks_see_what_they_should():
  source = """
import flax.linen
from jaxrl_mm.models import vlm
from jaxrl_mm.models.vlm import init
def f():
  import grain
"""
  found = list(_imports(ast.parse(source)))
  assert found == [
    ("flax.linen", 2, True),
    ("jaxrl_mm.models.vlm", 3, True),
    ("jaxrl_mm.models.vlm.init", 4, True),
    ("grain", 6, False),
  ]
  assert _own("jaxrl_mm.models.vlm.init") == "jaxrl_mm.models.vlm"
  assert _own("jax.numpy") is None
  assert _unit("jaxrl_mm") == "__init__"
  assert _unit("jaxrl_mm.evaluate.__main__") == "__main__"
  assert _unit("jaxrl_mm.models.vlm") == "models"
  assert MODULES[_own("jaxrl_mm")].name == "__init__.py"
