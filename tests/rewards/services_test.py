"""Calls made in the sandbox, and what a model cannot do with them."""

import importlib.util
import os

import pytest

from jaxrl_mm.errors import InputError
from jaxrl_mm.rewards import calls, services
from jaxrl_mm.rewards.services import Scene

SCENE = Scene("multi_turn_base_0", ("TicketAPI",), {"TicketAPI": {}})
SCENE.config["TicketAPI"]["tickets"] = [1, 2, 3]
KNOWN = ["close_ticket", "count_tickets"]
TRUTH = [["close_ticket(ticket_id=1)"], ["count_tickets()"]]


def texts(response):
  return [services.text_of(c, KNOWN) for c in calls.calls_of(response)]


def test_results_come_in_their_order(bfcl_package):
  turns = [[["close_ticket(ticket_id=1)"], ["close_ticket(ticket_id=7)"]], []]
  turns.append([["count_tickets()", "no_such_function()"]])
  assert services.results(SCENE, turns) == [
    [
      ["{'left': 2}"],
      ["Error during execution: list.remove(x): x not in list"],
    ],
    [],
    [
      [
        "{'left': 2, 'to': 9}",
        "Error during execution: name 'no_such_function' is not defined",
      ]
    ],
  ]


@pytest.mark.parametrize(
  "turns, right",
  [
    ([[["close_ticket(ticket_id=1)"]], [["count_tickets()"]]], True),
    ([[["close_ticket(ticket_id=1)", "count_tickets()"]], []], True),
    ([[["close_ticket(ticket_id=2)"]], [["count_tickets()"]]], False),
    ([[["close_ticket(ticket_id=1)"]], []], False),
    ([[], [["close_ticket(ticket_id=1)", "count_tickets()"]]], False),
  ],
)
def test_states_and_results_decide(bfcl_package, turns, right):
  assert services.right(SCENE, turns, TRUTH) == right


def test_no_text_of_a_model_is_run(bfcl_package):
  """What a model writes becomes literals, and names that are known."""
  assert texts("[close_ticket(ticket_id=open('x'))]") == [
    """close_ticket(ticket_id="open('x')")"""
  ]
  hostile = "[open(file='a'), services.clear(), TicketAPI.count_tickets()]"
  assert texts(hostile) == ["no_such_function()"] * 3
  assert texts("[close_ticket(ticket_id=-1)]") == ["close_ticket(ticket_id=-1)"]


def test_what_takes_too_long_is_given_up(bfcl_package, monkeypatch):
  monkeypatch.setattr(services, "_LIMITS", services.sandbox.Limits(seconds=1))
  turns = [[["close_ticket(ticket_id=9**9**9)"]], []]
  assert services.results(SCENE, turns) is None
  assert not services.right(SCENE, turns, TRUTH)


def test_without_the_package_there_is_a_sentence(monkeypatch):
  monkeypatch.setattr(services.sandbox, "check", lambda: None)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  services.check.cache_clear()
  with pytest.raises(InputError, match="--no-deps bfcl-eval mpmath; or remove"):
    services.check()
  assert services.check.cache_info().currsize == 0


@pytest.mark.skipif(
  importlib.util.find_spec("bfcl_eval") is None,
  reason="the package bfcl-eval is not installed",
)
def test_the_published_package():
  root = {"a": {"type": "directory", "contents": {}}}
  config = {"GorillaFileSystem": {"root": root}}
  scene = Scene("multi_turn_base_0", ("GorillaFileSystem",), config)
  truth = [["mkdir(dir_name='b')"], ["ls()"]]
  right = [[["mkdir(dir_name='b')"]], [["ls()"]]]
  assert services.right(scene, right, truth)
  assert not services.right(scene, [[["mkdir(dir_name='c')"]], []], truth)
  assert "b" in services.results(scene, right)[1][0][0]
  assert "bfcl_eval" not in os.sys.modules
