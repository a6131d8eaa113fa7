"""Our numbers beside the published ones."""

import json

import pytest

from jaxrl_mm.evaluate import table
from jaxrl_mm.evaluate.benchmarks import BENCHMARKS
from jaxrl_mm.evaluate.published import PUBLISHED

SUMMARY = {
  "items": 4,
  "samples": 2,
  "metrics": {"overall": 0.5, "Science": 0.25},
  "pass@1": {"value": 0.5, "low": 0.375, "high": 0.625},
  "unread": 0.125,
  "pass@k": {"1": 0.5, "2": 0.75},
  "maj@k": {
    "1": {"overall": 0.5, "Science": 0.25},
    "2": {"overall": 0.625, "Science": 0.5},
  },
  "judge": {"metrics": {"overall": 0.6}, "agreement": 0.9, "kappa": 0.8},
}


def test_ours_stand_before_the_published():
  found = table.rows("mmmu", "mine", SUMMARY)
  assert list(found)[:5] == [
    "mine",
    "mine, voting@2",
    "mine, any@2",
    "mine, by the judge",
    "Skywork R1V2-38B",
  ]
  assert found["mine"] == {"overall": 50, "Science": 25, "±": 12.5}
  assert found["mine, any@2"] == {"overall": 75}
  assert found["Skywork R1V2-38B"] == {"overall": 73.6}
  assert found["InternVL3-38B"] == {"overall": 70.1}


def test_one_run_has_no_votes():
  one = SUMMARY | {"pass@k": {"1": 0.5}, "maj@k": {"1": {"overall": 0.5}}}
  del one["judge"]
  assert list(table.rows("digits", "mine", one)) == ["mine"]


def test_a_column_that_only_others_have_is_empty_for_us():
  lines = table.text({"a": {"x": 1.0}, "b": {"y": 2.25}})
  assert lines == [
    {"model": "a", "x": "1.0", "y": ""},
    {"model": "b", "x": "", "y": "2.2"},
  ]
  assert table.text({"a": {"x": 1.0}, "b": {"y": 2.25}}, ours=True) == [
    {"model": "a", "x": "1.0", "y": ""},
    {"model": "b", "x": "", "y": "2.2"},
  ]
  assert table.text({"a": {"x": 1.0}, "b": {"x": 3.0, "y": 2.25}}, ours=True)[
    1
  ] == {"model": "b", "x": "3.0"}
  assert table.markdown("t", {"a": {"x": 1.0}}) == (
    "## t\n\n| model | x |\n| --- | --- |\n| a | 1.0 |\n"
  )


def test_files(tmp_path):
  tables = table.write(tmp_path, "mine", {"mmmu": SUMMARY})
  assert json.loads((tmp_path / "table.json").read_text()) == tables
  text = (tmp_path / "table.md").read_text()
  assert "mmmu, percent; others by https://arxiv.org" in text
  assert "| mine | 50.0 | 25.0 | 12.5 |" in text
  assert "4 items, runs: 2" in text and "12.5 % of the responses" in text
  assert "agree on 90.0 %" in text


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_are_percents_of_known_benchmarks(name):
  # The rate of hallucination is of no benchmark that the paper names.
  assert name in BENCHMARKS or name == "hallucination"
  source, models = PUBLISHED[name]
  assert source and models
  for row in models.values():
    assert all(1 < value < 100 for value in row.values())
