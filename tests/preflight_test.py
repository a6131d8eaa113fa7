"""What is found wrong before the first stage."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from jaxrl_mm import experiment, preflight, run, weights
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import Experiment, MeshConfig
from jaxrl_mm.models import config as models
from jaxrl_mm.models.lora import LoraConfig
from jaxrl_mm.rewards.endpoint import Endpoint
from jaxrl_mm.train.assemble import AssembleConfig
from jaxrl_mm.train.difficulty import DifficultyConfig
from jaxrl_mm.train.loop import LoopConfig
from jaxrl_mm.train.policy import PolicyConfig
from jaxrl_mm.train.preference import PreferenceConfig
from jaxrl_mm.train.sft import SftConfig

ROOT = Path(__file__).parent.parent
DEMO = Experiment(
  model=models.digits(),
  policy=PolicyConfig(algorithm={"name": "r1v2", "capacity": 512}),
)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"sft": SftConfig(batch=63)}, r"config.sft.batch \(63\).*2 row shards"),
    (
      {"sft": SftConfig(batch=64, micro_batch=24)},
      r"64 sft.batch / 2 shards \(32\).*config.sft.micro_batch \(24\)",
    ),
    (
      {"policy": PolicyConfig(micro_batch=24)},
      r"64 prompts_per_step \* 8 samples_per_prompt / 2 shards \(256\)",
    ),
    (
      {"policy": PolicyConfig(updates_per_rollout=3)},
      r"2 shards \(256\) .* config.policy.updates_per_rollout \(3\)",
    ),
    (
      {"policy": PolicyConfig(algorithm={"name": "r1v2", "capacity": 9})},
      r"capacity \(9\)",
    ),
    (
      {"policy": PolicyConfig(algorithm={"name": "x"})},
      "is 'x'; known are.*grpo",
    ),
    (
      {"policy": PolicyConfig(algorithm={"name": "grpo", "clipp": 1})},
      "config.policy.algorithm: .*clipp",
    ),
    ({"policy": PolicyConfig(weights={"beauty": 1.0})}, "weights has 'beauty'"),
    (
      {"policy": PolicyConfig(cache="int4")},
      "policy.cache is 'int4'; known are model, int8",
    ),
    (
      {"policy": PolicyConfig(decode_weights="x")},
      "policy.decode_weights is 'x'; known are model, int8",
    ),
    ({"policy": PolicyConfig(stop=("a", ""))}, "stop has an empty string"),
    (
      {
        "stages": ("difficulty",),
        "policy": PolicyConfig(weights={"format": 1.0}),
      },
      "neither 'result' nor 'answer'",
    ),
    ({"policy": PolicyConfig(temperature=0.0)}, "temperature is 0.0 and"),
    (
      {
        "policy": PolicyConfig(samples_per_prompt=1, algorithm={"name": "rloo"})
      },
      "samples_per_prompt is 1 and 'rloo' compares.*stable_reinforce",
    ),
    (
      {
        "stages": ("preference",),
        "preference": PreferenceConfig(threshold=1.0),
      },
      "preference.threshold is 1.0 and there is no reward model",
    ),
    (
      {
        "stages": ("assemble",),
        "lora": LoraConfig(),
        "assemble": AssembleConfig(substitute="a", reasoner="b"),
      },
      "another from a folder; set config.lora to None",
    ),
    (
      {"evaluation": experiment.EvaluationConfig(size=100, batch=64)},
      r"config.evaluation.size \(100\)",
    ),
    (
      {"mesh": MeshConfig(sequence=5)},
      r"completion_tokens \(\d+\).*config.mesh.sequence \(5\)",
    ),
  ],
)
def test_what_does_not_fit_fails_at_once(change, message):
  with pytest.raises(InputError, match=message):
    preflight.check_config(dataclasses.replace(DEMO, **change), 2)


@pytest.mark.parametrize(
  "name, variant",
  [
    ("digits_r1v2", "r1v2"),
    ("digits_r1v2", "all_labels"),
    ("digits_r1_reward", "stable_reinforce"),
    ("digits_r1_reward", "stress_reinforce_plus_plus"),
  ],
)
def test_a_demo_fits_unchanged_on_one_to_sixteen_shards(name, variant):
  module = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))
  demo = experiment.from_config(module["get_config"](variant))
  for shards in (1, 2, 4, 8, 16):
    preflight.check_config(demo, shards)


@pytest.mark.parametrize(
  "change",
  [
    {"sft": SftConfig(steps=0)},
    {"policy": PolicyConfig(samples_every=0)},
    {"policy": PolicyConfig(micro_batch=0, micro_tokens=10**6)},
    {"loop": LoopConfig(save_every=0)},
  ],
)
def test_nothing_is_counted_by_zero(change):
  with pytest.raises(InputError, match="is 0; it must be at least 1"):
    preflight.check_config(dataclasses.replace(DEMO, **change), 1)


def test_a_disk_without_room_for_the_checkpoints(tmp_path, monkeypatch):
  weights = {"decoder": {"up": jnp.zeros((250, 1000))}}
  free = lambda left: monkeypatch.setattr(
    preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=left)
  )
  plain = PolicyConfig(algorithm={"name": "grpo"})
  e = dataclasses.replace(DEMO, policy=plain)
  check = lambda done: preflight.check_disk(e, tmp_path, weights, done)
  # 12 bytes a weight with its moments, 2 stages, 2 checkpoints of each, and the
  # one that is being written.
  free(15_000_000)
  check(())
  free(14_999_999)
  with pytest.raises(InputError, match="about 0.0 GB.*lower config.loop.keep"):
    check(())
  free(9_000_000)
  check(("sft",))
  free(0)
  check(("sft", "policy"))


def test_a_replay_buffer_needs_room_in_the_checkpoints(tmp_path, monkeypatch):
  buffered = PolicyConfig(algorithm={"name": "r1v2", "capacity": 1000})
  e = dataclasses.replace(DEMO, stages=("policy",), policy=buffered)
  weights = {"decoder": {"up": jnp.zeros(1)}}
  # Of the 1,000 rows of each of three checkpoints the pictures alone: 8 x 8 of
  # three colours, three tiles and the thumbnail.
  pictures = 3 * 1000 * 4 * 8 * 8 * 3
  disk = SimpleNamespace(free=pictures)
  monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: disk)
  with pytest.raises(InputError, match="lower config.loop.keep"):
    preflight.check_disk(e, tmp_path, weights, ())
  disk.free = 2 * pictures
  preflight.check_disk(e, tmp_path, weights, ())


def test_a_teacher_that_is_down_is_found_before_the_first_stage(
  serve, tmp_path, monkeypatch
):
  monkeypatch.setattr(weights, "initial", lambda *_: pytest.fail("too late"))
  with serve(lambda prompt, times: 500) as server:
    teacher = Endpoint(server.url, model="m", temperature=1.0)
    asks = dataclasses.replace(
      DEMO,
      stages=("sft", "difficulty"),
      difficulty=DifficultyConfig(teacher=teacher),
    )
    with pytest.raises(
      InputError, match=f"teacher, .*: .* {server.url} failed"
    ):
      run.run(asks, tmp_path)
    # Nor is it waited for.
    assert len(server.requests) == 1
    server.reply = lambda prompt, times: "1"
    preflight.check_endpoints(asks, ["sft"])
    assert len(server.requests) == 2
    preflight.check_endpoints(asks, ["sft", "difficulty"])
    preflight.check_endpoints(dataclasses.replace(asks, stages=("sft",)), [])
    assert len(server.requests) == 2


def test_a_judge_of_consistency_is_asked_once_too(serve):
  policy = PolicyConfig(weights={"result": 1.0, "consistency": 0.5})
  with serve(lambda prompt, times: 400) as server:
    judged = dataclasses.replace(
      DEMO,
      stages=("policy",),
      policy=policy,
      consistency=Endpoint(server.url, model="m"),
    )
    with pytest.raises(InputError, match=r"config\.consistency, .*BadRequest"):
      preflight.check_endpoints(judged, [])
    unused = dataclasses.replace(policy, weights={"result": 1.0})
    preflight.check_endpoints(dataclasses.replace(judged, policy=unused), [])
    assert len(server.requests) == 1
