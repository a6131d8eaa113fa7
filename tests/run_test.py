"""What a run finds wrong before its first stage."""

import dataclasses

import pytest

from jaxrl_mm import run, sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models import config as models

DEMO = Experiment(model=models.digits())


def test_a_small_vocabulary_is_refused():
  small = dataclasses.replace(DEMO, model=models.digits(vocab=8))
  with pytest.raises(InputError, match="vocab is 8"):
    run.make_setting(small, sharding.make_mesh())


def test_an_unknown_stage_is_named():
  with pytest.raises(InputError, match="'dpo'; known are .*sft.*policy"):
    run.check_stages(dataclasses.replace(DEMO, stages=("sft", "dpo")))
