"""Function calls compared with the allowed ones: the Berkeley leaderboard.

BFCL (https://gorilla.cs.berkeley.edu/leaderboard.html), the part graded by
syntax tree, in Python. Its package is not used, for it pins numpy 1.26 and
brings the clients of ten providers. Nothing the model writes is run.
"""

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_FENCE = re.compile(r"```(?:python|json|tool_code)?\s*\n?(.*?)```", re.DOTALL)
_MARKS = re.compile(r"[ ,./\-_*^]")
_LONGEST = 20_000
_KINDS = {
  "string": str,
  "integer": int,
  "float": float,
  "boolean": bool,
  "array": list,
  "tuple": list,
  "dict": dict,
  "any": str,
}


class Call(NamedTuple):
  """A call: its function's full name and its keyword arguments."""

  name: str
  arguments: dict[str, Any]


class Variable(str):
  """A name used as a value; the truths hold such names as strings."""


def calls_of(response: str) -> list[Call] | None:
  """The calls of a response such as `[f(a=1), g.h(b="x")]`; None if none.

  What follows the thoughts, inside a code fence or not, has to be calls and
  nothing else. Arguments without a name are dropped, as the released decoder
  drops them: such a call is one, and lacks what it needs.
  """
  text = response.rpartition("</think>")[2].strip()
  fenced = _FENCE.search(text)
  text = (fenced[1] if fenced else text).strip().strip("`").strip()
  if len(text) > _LONGEST:
    return None
  try:
    with warnings.catch_warnings():
      # Of the compiler, about the text of a model.
      warnings.simplefilter("ignore", SyntaxWarning)
      warnings.simplefilter("ignore", DeprecationWarning)
      tree = ast.parse(text, mode="eval").body
    nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    return [_call(node) for node in nodes] or None
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return None


def _call(node: ast.expr) -> Call:
  if not isinstance(node, ast.Call):
    raise ValueError("not a call")
  if any(keyword.arg is None for keyword in node.keywords):
    raise ValueError("** in a call")
  arguments = {k.arg: _value(k.value) for k in node.keywords}
  return Call(_name(node.func), arguments)


def _name(node: ast.expr) -> str:
  if isinstance(node, ast.Name):
    return node.id
  if isinstance(node, ast.Attribute):
    return f"{_name(node.value)}.{node.attr}"
  raise ValueError("a function without a name")


def _value(node: ast.expr) -> Any:
  """A literal; a name or any other expression as the text it is."""
  if isinstance(node, ast.List | ast.Tuple):
    return [_value(element) for element in node.elts]
  if isinstance(node, ast.Dict) and None not in node.keys:
    keys = [ast.literal_eval(key) for key in node.keys]
    return {k: _value(v) for k, v in zip(keys, node.values)}
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError):
    return Variable(ast.unparse(node))


def match(
  calls: Sequence[Call],
  functions: Sequence[Mapping[str, Any]],
  truths: Sequence[Mapping[str, Mapping[str, Sequence[Any]]]],
) -> bool:
  """Whether the calls are the expected ones, in any order.

  Args:
    calls: what `calls_of` gave.
    functions: the descriptions the model was given.
    truths: `{name: {argument: allowed values}}` of each expected call; an
      allowed value of "" lets the argument be left out.
  """
  if len(calls) != len(truths):
    return False
  described = {f["name"]: f for f in functions}
  rest = list(calls)
  for truth in truths:
    ((name, allowed),) = truth.items()
    same = (c for c in rest if _same_call(c, name, allowed, described[name]))
    found = next(same, None)
    if found is None:
      return False
    rest.remove(found)
  return True


def _same_call(call, name, allowed, function) -> bool:
  parameters = function["parameters"]
  # Dots are not allowed in names by some providers' formats.
  if call.name not in (name, name.replace(".", "_")):
    return False
  if any(key not in call.arguments for key in parameters.get("required", ())):
    return False
  left_out = [key for key in allowed if key not in call.arguments]
  if any("" not in allowed[key] for key in left_out):
    return False
  return all(
    key in allowed
    and key in parameters["properties"]
    and _allowed(value, allowed[key], parameters["properties"][key])
    for key, value in call.arguments.items()
  )


def _allowed(value: Any, allowed: Sequence[Any], schema: Mapping) -> bool:
  """Is it of the described kind, or of the allowed values', and one of them?"""
  kind = _KINDS.get(schema["type"], str)
  if kind is float and type(value) is int:
    value = float(value)
  others = {type(a) for a in allowed if a != ""}
  plain = str if isinstance(value, Variable) else type(value)
  if plain is not kind and plain not in others:
    return False
  return any(_same(value, a) for a in allowed)


def _same(value: Any, truth: Any) -> bool:
  """Equality; of strings without case, spaces and most marks."""
  if isinstance(value, str) and isinstance(truth, str):
    return _letters(value) == _letters(truth)
  if isinstance(value, list) and isinstance(truth, list):
    pairs = zip(value, truth)
    return len(value) == len(truth) and all(_same(v, t) for v, t in pairs)
  if isinstance(value, dict) and isinstance(truth, dict):
    return _same_dict(value, truth)
  # True is no 1 here.
  return isinstance(value, bool) == isinstance(truth, bool) and value == truth


def _same_dict(value: dict, truth: dict) -> bool:
  """Truths of dicts hold the allowed values of each key, as of arguments do;
  those of dicts in dicts hold the values themselves."""
  if any(key not in truth for key in value):
    return False
  left_out = [truth[key] for key in truth if key not in value]
  if not all(isinstance(t, list) and "" in t for t in left_out):
    return False
  return all(_one_of(v, truth[key]) for key, v in value.items())


def _one_of(value: Any, truth: Any) -> bool:
  listed = isinstance(truth, list) and any(_same(value, t) for t in truth)
  return listed or _same(value, truth)


def _letters(text: str) -> str:
  return _MARKS.sub("", text).lower().replace("'", '"')
