"""Two processes as a pod, in short; `make pod` has the long tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "pod"))
import launching  # noqa: E402

# Only the numbers are compared, on one device.
pytestmark = pytest.mark.filterwarnings(
  "ignore:Sharding info not provided", "ignore:Couldn't find sharding info"
)


def test_two_processes_train_as_one_does(tmp_path):
  mesh = "mesh.data=2", "mesh.fsdp=1", "mesh.tensor=2"
  one, two = tmp_path / "one", tmp_path / "two"
  launching.finish(launching.start(one, "sft", 1, 4, *mesh))
  told = launching.finish(launching.start(two, "sft", 2, 2, *mesh))
  launching.check_equal(two, one, ("sft",))
  assert launching.summary(two)["stages"].keys() == {"sft"}
  assert told.count("Held-out results") == 1  # the first process alone
  assert not list(two.glob(".write_test*"))
