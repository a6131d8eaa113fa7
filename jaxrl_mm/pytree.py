"""Paths of leaves, and tables from path patterns to values.

One idea serves sharding, freezing and checkpoint names: the first pattern
that matches a leaf's whole path decides.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


def path_name(path: Sequence[Any]) -> str:
  """`(DictKey('a'), SequenceKey(0))` -> `'a/0'`."""
  return "/".join(
    str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
    for k in path
  )


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
  """The leaves of `tree` with their paths, in tree order."""
  leaves, _ = jax.tree.flatten_with_path(tree)
  return [(path_name(path), leaf) for path, leaf in leaves]


def map_with_name(f: Callable[[str, Any], Any], tree: Any) -> Any:
  """`jax.tree.map` whose function also gets each leaf's path."""
  return jax.tree.map_with_path(lambda path, x: f(path_name(path), x), tree)


def first_match(name: str, table: Sequence[tuple[str, Any]]) -> Any:
  """The value of the first pattern that matches the whole of `name`.

  Raises:
    KeyError: no pattern matches.
  """
  for pattern, value in table:
    if matches(pattern, name):
      return value
  raise KeyError(f"no pattern matches the leaf '{name}'; add one to the table")


def split(tree: dict, pattern: str) -> tuple[dict, dict]:
  """Nested dicts of the leaves whose paths match, and of the others."""
  parts = {}, {}

  def walk(node, path, into):
    for key, child in node.items():
      inside = (*path, key)
      if isinstance(child, dict):
        walk(child, inside, into)
        continue
      at = into[0 if matches(pattern, "/".join(inside)) else 1]
      for name in path:
        at = at.setdefault(name, {})
      at[key] = child

  walk(tree, (), parts)
  return parts


def join(left: dict, right: dict) -> dict:
  """One nested dict of two that share no leaf; the way back from `split`."""
  both = {k: join(left[k], right[k]) for k in left.keys() & right.keys()}
  return left | right | both


def dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
  """Nested mappings as one: `{'a': {'b': 1}}` -> `{'a.b': 1}`."""
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  parts = [dotted(v, f"{prefix}.{k}" if prefix else k) for k, v in tree.items()]
  return {k: v for part in parts for k, v in part.items()}


def differences(there: Any, here: Any) -> dict[str, str]:
  """What two nested mappings have differently, in words, by dotted name."""
  other, mine = dotted(there), dotted(here)
  return {
    k: f"{k} is {other.get(k)} there and {mine.get(k)} here"
    for k in sorted(other.keys() | mine.keys())
    if other.get(k) != mine.get(k)
  }


def matches(pattern: str, name: str) -> bool:
  """Whether `pattern` matches the whole of `name`."""
  return re.fullmatch(pattern, name) is not None
