"""Reading config.json: what we need of it, and what we cannot honour."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl_mm.errors import InputError


def need(json: Mapping[str, Any], name: str, where: str) -> Any:
  """The value of a field that has no default."""
  if json.get(name) is None:
    raise InputError(
      f"{where} has no '{name}'; take config.json from the checkpoint's own "
      "folder"
    )
  return json[name]


def allow(
  json: Mapping[str, Any], name: str, values: Sequence[Any], where: str
) -> None:
  """Refuses a field whose value is none of `values`; it may be unset.

  Raises:
    InputError: names the field, its value and what is known.
  """
  if json.get(name) is not None and json[name] not in values:
    known = " or ".join(repr(value) for value in values)
    raise InputError(
      f"{where} has {name} = {json[name]!r} and this model knows only {known}; "
      "choose another checkpoint"
    )
