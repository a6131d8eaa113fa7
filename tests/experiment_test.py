"""Configs as the command line has them, and the folder of a run."""

import dataclasses
import json
from pathlib import Path

import pytest

from jaxrl_mm import experiment
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import Experiment, MeshConfig
from jaxrl_mm.models import config as models
from jaxrl_mm.train.difficulty import DifficultyConfig
from jaxrl_mm.train.loop import LoopConfig
from jaxrl_mm.train.policy import PolicyConfig
from jaxrl_mm.train.sft import SftConfig

ROOT = Path(__file__).parent.parent
DEMO = Experiment(
  model=models.digits(),
  policy=PolicyConfig(algorithm={"name": "r1v2", "capacity": 512}),
)


def test_config_round_trip():
  assert experiment.from_config(experiment.to_config(DEMO)) == DEMO


def test_an_unknown_value_is_named():
  config = experiment.to_config(DEMO).to_dict()
  config["sft"]["stepz"] = 3
  with pytest.raises(
    InputError, match="config.sft has no 'stepz'; it has steps"
  ):
    experiment._build(Experiment, config, "config")


def test_a_folder_belongs_to_one_config(tmp_path):
  folder = tmp_path / "new" / "run"
  experiment.claim_folder(folder, DEMO)
  experiment.claim_folder(folder, DEMO)
  other = dataclasses.replace(DEMO, seed=7)
  with pytest.raises(InputError, match="seed is 0 there and 7 here"):
    experiment.claim_folder(folder, other)
  written = json.loads((folder / "config.json").read_text())
  assert written["model"]["decoder"]["width"] == 64


def test_the_settings_of_a_stage_that_has_saved_nothing_may_change(tmp_path):
  experiment.claim_folder(tmp_path, DEMO)
  (tmp_path / "sft" / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(
    parents=True
  )
  other = dataclasses.replace(
    DEMO, sft=SftConfig(steps=7), loop=LoopConfig(keep=1)
  )
  experiment.claim_folder(tmp_path, other)
  assert experiment.read(tmp_path) == other
  (tmp_path / "sft" / "checkpoints" / "7").mkdir()
  with pytest.raises(InputError, match="sft.steps is 7 there and 500 here"):
    experiment.claim_folder(tmp_path, DEMO)
  later = dataclasses.replace(other, policy=PolicyConfig(steps=9))
  experiment.claim_folder(tmp_path, later)
  # What no stage of this run reads is no stage's own.
  unused = dataclasses.replace(later, cold_start=SftConfig(steps=7))
  with pytest.raises(InputError, match="cold_start.steps is 500 there"):
    experiment.claim_folder(tmp_path, unused)


def test_labels_have_begun_their_stage(tmp_path):
  e = dataclasses.replace(DEMO, stages=("difficulty",))
  experiment.claim_folder(tmp_path, e)
  (tmp_path / "difficulty").mkdir()
  (tmp_path / "difficulty" / "labels.jsonl").write_text("")
  other = dataclasses.replace(e, difficulty=DifficultyConfig(attempts=2))
  with pytest.raises(InputError, match="attempts is 3 there and 2 here"):
    experiment.claim_folder(tmp_path, other)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot use the folder .*file/run"):
    experiment.claim_folder(tmp_path / "file" / "run", DEMO)


def test_a_bucket_is_no_folder():
  with pytest.raises(InputError, match="mount the bucket"):
    experiment.claim_folder(Path("gs://bucket/run"), DEMO)


def test_the_steps_to_trace():
  of = lambda text: experiment.profiled(
    dataclasses.replace(DEMO, profile_steps=text)
  )
  assert of("10:12") == range(10, 13)
  assert len(of("")) == 0
  for wrong in ("10", "12:10", "0:3", "a:b"):
    with pytest.raises(InputError, match="such as 10:12"):
      of(wrong)


def test_a_run_may_go_on_elsewhere_and_be_traced(tmp_path):
  experiment.claim_folder(tmp_path, DEMO)
  mesh = MeshConfig(fsdp=2)
  other = dataclasses.replace(DEMO, profile_steps="3:4", mesh=mesh)
  experiment.claim_folder(tmp_path, other)


def test_a_folder_that_a_process_cannot_use(tmp_path, monkeypatch):
  assert "all hosts share" in experiment.unwritable(tmp_path, 1)
  experiment.claim_folder(tmp_path, DEMO)
  assert experiment.unwritable(tmp_path, 1) == ""
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(type(tmp_path), "write_text", full)
  assert "No space left" in experiment.unwritable(tmp_path, 1)
