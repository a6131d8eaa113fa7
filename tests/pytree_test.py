from typing import NamedTuple

import pytest

from jaxrl_mm import pytree


class _Pair(NamedTuple):
  left: int
  right: int


TREE = {"a": {"b": [10, 20]}, "pair": _Pair(1, 2)}


def test_paths_join_keys_indices_and_field_names():
  assert pytree.named_leaves(TREE) == [
    ("a/b/0", 10),
    ("a/b/1", 20),
    ("pair/left", 1),
    ("pair/right", 2),
  ]


def test_map_with_name_keeps_the_structure():
  named = pytree.map_with_name(lambda name, x: f"{name}={x}", TREE)
  assert named["a"]["b"] == ["a/b/0=10", "a/b/1=20"]
  assert named["pair"] == _Pair("pair/left=1", "pair/right=2")


def test_the_first_pattern_that_matches_the_whole_path_decides():
  table = [("a/b", 0), ("a/.*", 1), (".*", 2)]
  assert pytree.first_match("a/b", table) == 0
  assert pytree.first_match("a/b/c", table) == 1
  assert pytree.first_match("xa/b", table) == 2


def test_an_unmatched_path_is_named():
  with pytest.raises(KeyError, match="the leaf 'b'"):
    pytree.first_match("b", [("a", 0)])


def test_matches_is_about_the_whole_path():
  assert pytree.matches("projector/.*", "projector/up/kernel")
  assert not pytree.matches("projector", "projector/up/kernel")
  assert not pytree.matches("up/kernel", "projector/up/kernel")


def test_split_and_join_are_inverse():
  tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
  chosen, rest = pytree.split(tree, "a/c/.*|e")
  assert chosen == {"a": {"c": {"d": 2}}, "e": 3}
  assert rest == {"a": {"b": 1}}
  assert pytree.join(chosen, rest) == pytree.join(rest, chosen) == tree
  assert pytree.split(tree, ".*") == (tree, {})


def test_nested_mappings_by_dotted_name():
  tree = {"a": {"b": 1, "c": {"d": (2, 3)}}, "e": None}
  assert pytree.dotted(tree) == {"a.b": 1, "a.c.d": (2, 3), "e": None}


def test_differences_are_told_in_words():
  there = {"a": {"b": 1, "c": 2}, "old": 5}
  here = {"a": {"b": 1, "c": 3}, "new": {"x": 7}}
  assert pytree.differences(there, here) == {
    "a.c": "a.c is 2 there and 3 here",
    "new.x": "new.x is None there and 7 here",
    "old": "old is 5 there and None here",
  }
