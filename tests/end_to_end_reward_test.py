"""R1-Reward's stages as one run: whole, and broken off in two of them."""

import contextlib
import dataclasses
import runpy
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxrl_mm import experiment, metrics, run
from jaxrl_mm.data import difficulty
from jaxrl_mm.evaluate.accuracy import EvaluationConfig
from jaxrl_mm.evaluate.judging import JudgingConfig
from jaxrl_mm.experiment import MeshConfig
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.rewards.endpoint import Endpoint
from jaxrl_mm.rewards.judge import JudgeDown
from jaxrl_mm.train import policy
from jaxrl_mm.train.difficulty import DifficultyConfig
from jaxrl_mm.train.loop import LoopConfig
from jaxrl_mm.train.sft import SftConfig

CONFIG = Path(__file__).parent.parent / "configs" / "digits_r1_reward.py"
BIASED = "<think>response 1 is better</think><answer>1</answer>"


def _teach(prompt, times):
  """Prefers the first response, whatever the picture; says nothing of sums."""
  del times
  return "" if "sum" in prompt else BIASED


def _small(url):
  demo = experiment.from_config(runpy.run_path(str(CONFIG))["get_config"]())
  small = lambda part: dataclasses.replace(part, layers=1)
  change = dataclasses.replace
  return change(
    demo,
    model=change(
      demo.model,
      vision=small(demo.model.vision),
      decoder=small(demo.model.decoder),
    ),
    stages=("difficulty", "cold_start", "policy"),
    # The row shards of the mesh are the eight devices.
    mesh=MeshConfig(),
    data=change(demo.data, completion_tokens=11),
    loop=LoopConfig(save_every=1, keep=1),
    difficulty=DifficultyConfig(
      questions=20, batch=8, teacher=Endpoint(url, retries=0)
    ),
    cold_start=SftConfig(
      steps=25,
      batch=8,
      micro_batch=1,
      optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
    ),
    policy=change(
      demo.policy,
      steps=3,
      prompts_per_step=16,
      micro_batch=2,
      samples_every=2,
    ),
    evaluation=EvaluationConfig(size=8, batch=8),
    judging=JudgingConfig(pairs=8, batch=8, samples=3, votes=(1, 3)),
  )


@pytest.fixture(scope="module")
def endpoint(serve):
  with serve(_teach) as server:
    yield server


@pytest.fixture(scope="module")
def whole(endpoint, tmp_path_factory, quick_compile, unchecked):
  folder = tmp_path_factory.mktemp("runs") / "whole"
  return folder, run.run(_small(endpoint.url), folder)


def test_a_biased_teacher_makes_a_biased_judge_and_the_numbers_say_so(whole):
  folder, told = whole
  assert list(told["stages"]) == ["difficulty", "cold_start", "policy"]
  found = told["stages"]["difficulty"]
  assert found == {"questions": 20, "solved_at_1": 0.25, "never_solved": 0.75}
  judge = told["stages"]["cold_start"]
  assert judge["format"] > 0.8 and judge["reasoned"] > 0.8
  assert judge["first"] > 0.9 and judge["agreement"] < 0.2
  assert 0.4 < judge["voting@3"] < 0.6
  assert 8 < judge["length"] < 11.1
  assert (folder / "report.html").exists()


def test_the_hard_questions_are_those_it_was_wrong_about(whole):
  folder, _ = whole
  labels = difficulty.read_labels(folder / "difficulty" / "labels.jsonl")
  solved = [label.number for label in labels if label.right]
  assert solved == [0, 8, 10, 12, 14]
  assert [label.attempts for label in labels] == [
    1 if n in solved else 3 for n in range(20)
  ]
  samples = metrics.read_lines(folder / "policy" / "samples.jsonl")
  assert {s["step"] for s in samples} == {1, 3}
  assert set(samples[0]["terms"]) == {"result", "consistency", "format"}
  lines = metrics.read_lines(folder / "policy" / "metrics.jsonl")
  assert max(line["sampler_gap"] for line in lines) < 1e-4


# Only the bits are compared, on the devices that wrote them.
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_broken_off_anywhere_it_ends_the_same(
  whole, endpoint, monkeypatch, tmp_path
):
  asked, reply = len(endpoint.requests), endpoint.reply
  # The teacher goes down in its second batch, and comes back. Before it, it is
  # asked whether it is there, then 8 questions and the 7 wrong ones twice more.
  endpoint.reply = lambda *prompt: (
    500 if len(endpoint.requests) > asked + 24 else _teach(*prompt)
  )
  with pytest.raises(JudgeDown):
    run.run(_small(endpoint.url), tmp_path)
  endpoint.reply = reply
  kept = (tmp_path / "difficulty" / "labels.jsonl").read_text()
  assert kept.count("\n") == 8
  # The second rollout is the last.
  rollouts = iter([policy.rollout])
  monkeypatch.setattr(policy, "rollout", lambda *a: next(rollouts)(*a))
  with contextlib.suppress(StopIteration, RuntimeError):
    run.run(_small(endpoint.url), tmp_path)
  assert len(metrics.read_lines(tmp_path / "policy" / "metrics.jsonl")) == 1
  monkeypatch.undo()
  told = run.run(_small(endpoint.url), tmp_path)
  folder, first = whole
  labels = Path("difficulty", "labels.jsonl")
  assert (tmp_path / labels).read_bytes() == (folder / labels).read_bytes()
  assert _final(tmp_path) == _final(folder)
  assert _results(told) == _results(first)


def _results(told):
  clock = {"seconds", "tokens_per_second", "compilations"}
  return {
    name: {k: v for k, v in stage.items() if k not in clock}
    for name, stage in told["stages"].items()
  }


def _final(folder):
  path = folder / "policy" / "checkpoints" / "3" / "state"
  leaves = jax.tree.leaves(ocp.PyTreeCheckpointer().restore(path))
  data = lambda x: (
    jax.random.key_data(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    else x
  )
  return [np.asarray(data(leaf)).tobytes() for leaf in leaves]
