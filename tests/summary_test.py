"""The summary of a stage and the table of all."""

import json

from jaxrl_mm import summary


def _stage(folder):
  folder.mkdir()
  lines = [
    {"step": n, "seconds": n / 2, "tokens_per_second": speed, "effective": e}
    | {"compilations": 7}
    for n, speed, e in ((1, 10.0, 0.5), (2, 900.0, 1.0), (3, 1000.0, 0.0))
  ]
  text = "\n".join(json.dumps(line) for line in lines)
  (folder / "metrics.jsonl").write_text(text + "\n")


def test_means_and_medians_of_a_stage(tmp_path):
  _stage(tmp_path / "policy")
  told = summary.describe_stage(tmp_path / "policy", {"accuracy": 0.25})
  assert told["accuracy"] == 0.25
  assert told["effective"] == 0.5 and told["tokens_per_second"] == 900
  assert told["effective_without_buffer"] is None
  assert (told["steps"], told["seconds"]) == (3, 1.5)


def test_a_stage_that_trains_nothing_has_its_results_alone(tmp_path):
  assert summary.describe_stage(tmp_path, {"kept": 3.0}) == {"kept": 3.0}


def test_the_table_leaves_gaps(tmp_path, capsys):
  told = {"stages": {"sort": {}, "sft": {"accuracy": 0.625, "steps": 8}}}
  summary.write(tmp_path, told)
  assert summary.read(tmp_path) == told
  summary.show(told, tmp_path)
  printed = capsys.readouterr().out
  assert "62.5%" in printed and "sort" in printed
