"""The calls of a conversation, made to services that exist in memory alone.

They are those of the Berkeley leaderboard's conversations, in its package
bfcl_eval (https://gorilla.cs.berkeley.edu/blogs/13_bfcl_v3_multi_turn.html),
which evaluates the text of a call and compares states. Here it does so in the
sandbox, and a call that a model made holds literals only.
"""

import functools
import importlib.util
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl_mm.errors import InputError
from jaxrl_mm.rewards import sandbox
from jaxrl_mm.rewards.calls import Call

# Conversation -> turn -> step -> the texts of its calls.
Turns = Sequence[Sequence[Sequence[str]]]

# The long precision of a logarithm, or a great power, may take forever.
_LIMITS = sandbox.Limits(seconds=20)
# A name that nothing has, so that calling it fails as an unknown one should.
_UNKNOWN = "no_such_function()"
_PROGRAM = """
import json
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker as checker
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils as services

asked = json.load(sys.stdin)
entry, turns, truth = asked["entry"], asked["turns"], asked["truth"]
category = entry["id"].rpartition("_")[0]
if truth is None:
  found = [
    [
      services.execute_multi_turn_func_call(
        step,
        entry["initial_config"],
        entry["involved_classes"],
        "model",
        entry["id"],
        long_context="long_context" in category,
      )[0]
      for step in turn
    ]
    for turn in turns
  ]
else:
  found = checker.multi_turn_checker(turns, truth, entry, category, "model")
  found = found["valid"]
print(json.dumps(found))
"""


class Scene(NamedTuple):
  """Where a conversation begins.

  Attributes:
    id: of the item; its beginning says whether the services hold much data.
    services: names of the classes that are at hand.
    config: the state of each at the beginning.
  """

  id: str
  services: tuple[str, ...]
  config: dict[str, Any]


@functools.cache
def check() -> tuple[Path, ...]:
  """Looks once for the package and the sandbox; the folders it needs.

  Raises:
    InputError: one of them is missing.
  """
  sandbox.check()
  specs = [importlib.util.find_spec(n) for n in ("bfcl_eval", "mpmath")]
  if None in specs:
    raise InputError(
      "the conversations of BFCL need its package; install it with: pip "
      "install --no-deps bfcl-eval mpmath; or remove the files "
      "BFCL_v*_multi_turn_*.json"
    )
  return tuple(Path(spec.submodule_search_locations[0]) for spec in specs)


def text_of(call: Call, known: Collection[str]) -> str:
  """A call as Python text, all of whose values are literals.

  Args:
    call: what a model asked for.
    known: names of functions; any other name could be anything of Python's.
  """
  if call.name not in known:
    return _UNKNOWN
  given = ", ".join(f"{key}={value!r}" for key, value in call.arguments.items())
  return f"{call.name}({given})"


def results(scene: Scene, turns: Turns) -> list[list[list[str]]] | None:
  """What each call gave, made in their order; None where one took too long.

  Raises:
    InputError: the package or the sandbox is missing.
  """
  return _ask(scene, turns, None)


def right(scene: Scene, turns: Turns, truth: Sequence[Sequence[str]]) -> bool:
  """Whether calls do what the true ones do.

  After each turn the states are equal, and what the true calls of it give was
  given by some call so far.

  Args:
    scene: the beginning.
    turns: the calls of a model.
    truth: the true calls of each turn.

  Raises:
    InputError: the package or the sandbox is missing.
  """
  return _ask(scene, turns, truth) is True


def _ask(scene: Scene, turns: Turns, truth) -> Any:
  entry = {
    "id": scene.id,
    "involved_classes": scene.services,
    "initial_config": scene.config,
  }
  asked = json.dumps({"entry": entry, "turns": turns, "truth": truth})
  outcome = sandbox.run(_PROGRAM, asked, _LIMITS, check())
  return json.loads(outcome.output) if outcome.code == 0 else None
