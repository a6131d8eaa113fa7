"""LiveCodeBench's packed records, read and tried."""

import base64
import json
import os
import pickle
import zlib

import pytest

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import livecodebench
from jaxrl_mm.rewards import sandbox
from jaxrl_mm.rewards.code import Case


def packed(value):
  return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def record(**changes):
  test = {"input": "1\n", "output": "2\n", "testtype": "stdin"}
  return {
    "question_id": "abc_a",
    "question_content": "Add one.",
    "difficulty": "easy",
    "contest_date": "2024-09-01T00:00:00",
    "starter_code": "",
    "public_test_cases": json.dumps([test]),
    "private_test_cases": packed(json.dumps([test | {"input": "4"}])),
    "metadata": "{}",
  } | changes


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setattr(sandbox, "check", lambda: None)

  def write(*rows):
    (tmp_path / "test.jsonl").write_text(
      "".join(json.dumps(row) + "\n" for row in rows)
    )
    return tmp_path

  return write


def test_read(folder):
  call = {"input": "1", "output": "2", "testtype": "functional"}
  second = record(
    public_test_cases=json.dumps([call]),
    private_test_cases="[]",
    metadata='{"func_name": "f"}',
    starter_code="class Solution:",
  )
  first, second = livecodebench.read(folder(record(), second))
  assert first.details["cases"] == [Case("1\n", "2\n"), Case("4", "2\n")]
  assert second.details["cases"] == [Case("1", "2", "f")]
  assert "# YOUR CODE HERE" in livecodebench.prompt(first)
  assert "```python\nclass Solution:\n```" in livecodebench.prompt(second)
  assert first.category == "easy"


class Harm:
  def __reduce__(self):
    return os.mkdir, ("harm",)


@pytest.mark.parametrize("tests", [packed(Harm()), "!", packed(3), "[{]"])
def test_bad_tests_are_not_run(folder, tests, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match="test.jsonl:1: cannot read its test"):
    livecodebench.read(folder(record(private_test_cases=tests)))
  assert not (tmp_path / "harm").exists()


def test_grade(folder, monkeypatch):
  (item,) = livecodebench.read(folder(record()))
  tried = []

  def run(program, stdin, limits):
    tried.append(stdin)
    return sandbox.Outcome("2\n" if "good" in program else "3\n", "", 0, False)

  monkeypatch.setattr(sandbox, "run", run)
  assert livecodebench.grade("```python\n'good'\n```", item).score == 1
  assert livecodebench.grade("```python\n'bad'\n```", item).score == 0
  assert livecodebench.grade("no program", item) == (0, None, ())
  assert tried == ["1\n", "4", "1\n"]


def test_without_a_sandbox_it_is_refused_before_anything(folder, monkeypatch):
  def refuse():
    raise InputError("needs bwrap")

  monkeypatch.setattr(sandbox, "check", refuse)
  with pytest.raises(InputError, match="bwrap"):
    livecodebench.read(folder(record()))
