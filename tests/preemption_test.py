"""SIGTERM to this very process."""

import os
import signal

import pytest

from jaxrl_mm import preemption, sharding


@pytest.fixture
def handler():
  """What listened before is put back."""
  before = signal.getsignal(signal.SIGTERM)
  yield
  signal.signal(signal.SIGTERM, before)
  preemption._ASKED.clear()


def test_the_signal_is_noticed_and_kills_no_more(handler):
  preemption.watch()
  assert not preemption.is_near()
  os.kill(os.getpid(), signal.SIGTERM)
  assert preemption.is_near()
  assert preemption.is_near()  # also when it is asked again


def test_the_word_of_one_process_counts_for_all(monkeypatch):
  monkeypatch.setattr(sharding, "sum_over_processes", lambda x: x + 1)
  assert preemption.is_near()
