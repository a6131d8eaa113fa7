"""Mistakes on the command line, without starting a program."""

from pathlib import Path

import pytest

from jaxrl_mm import main


# ml_collections loads config files by a deprecated function of importlib.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
  "config, message",
  [
    (
      ("--config=configs/digits_r1v2.py", "--config.sft.stepz=3"),
      "error: the config has no such value: .*steps",
    ),
    (("--config=configs/nowhere.py",), "error: the config file cannot be read"),
  ],
)
def test_a_wrong_flag_is_one_sentence(config, message, monkeypatch):
  monkeypatch.chdir(Path(__file__).parent.parent)
  argv = ["main", "--workdir=x", *config]
  monkeypatch.setattr("sys.argv", argv)  # where ml_collections looks
  with pytest.raises(SystemExit, match=message):
    main.parse(argv)
