"""Mistakes on the command line, without starting a program."""

import pytest

from jaxrl_mm import main


@pytest.mark.parametrize(
  "flag, message",
  [
    ("--config.sft.stepz=3", "error: the config has no such value: .*steps"),
    ("--config=configs/nowhere.py", "error: the config file cannot be read"),
  ],
)
def test_a_wrong_flag_is_one_sentence(flag, message):
  argv = ["main", "--workdir=x", "--config=configs/digits_r1v2.py", flag]
  with pytest.raises(SystemExit, match=message):
    main.parse(argv)
