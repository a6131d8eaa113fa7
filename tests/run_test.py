"""The order of the stages, and what models they take."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from jaxrl_mm import inputs, run, sharding, weights
from jaxrl_mm.data.difficulty import Label
from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate.accuracy import EvaluationConfig
from jaxrl_mm.experiment import DataConfig, Experiment
from jaxrl_mm.models import config as models
from jaxrl_mm.models.huggingface import families
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.train.policy import PolicyConfig
from jaxrl_mm.train.sft import SftConfig

DEMO = Experiment(model=models.digits())


def test_an_unknown_stage_is_named():
  with pytest.raises(InputError, match="'dpo'; known are .*sft.*policy"):
    run.check_stages(dataclasses.replace(DEMO, stages=("sft", "dpo")))


def test_a_stage_comes_after_what_it_needs():
  stages = ("sft", "policy", "reward_model")
  with pytest.raises(InputError, match="'policy' before 'reward_model'"):
    run.check_stages(dataclasses.replace(DEMO, stages=stages))


def test_nothing_is_trained_before_the_parts_are_put_together():
  late = dataclasses.replace(DEMO, stages=("sft", "assemble"))
  with pytest.raises(InputError, match="'assemble' behind stages"):
    run.check_stages(late)


def test_what_answers_begin_with_takes_no_room_of_a_trace():
  data = DataConfig(prefix="<think>", completion_tokens=4)
  setting = inputs.make_setting(
    dataclasses.replace(DEMO, data=data), sharding.make_mesh()
  )
  label = lambda trace: Label(0, "", "3", 1, True, trace)
  # Three tokens, and the one that ends the answer.
  assert run._fits(setting, label("<think>1+2"))
  assert not run._fits(setting, label("<think>1+23"))


@pytest.mark.parametrize(
  "change, message",
  [
    ({"policy": PolicyConfig(micro_batch=5)}, r"micro_batch \(5\)"),
    (
      {"data": DataConfig(demonstrations="nowhere.jsonl")},
      "cannot read the data file nowhere",
    ),
  ],
)
def test_a_mistake_is_found_before_the_first_stage(
  change, message, tmp_path, monkeypatch
):
  monkeypatch.setattr(weights, "initial", lambda *_: pytest.fail("too late"))
  with pytest.raises(InputError, match=message):
    run.run(dataclasses.replace(DEMO, **change), tmp_path)


@pytest.fixture
def pictures(tmp_path):
  """Questions about pictures of odd sizes, as JSON lines."""
  rng = np.random.default_rng(0)
  lines = []
  for i, size in enumerate([(17, 40), (61, 33), (30, 30), (90, 23)]):
    pixels = rng.integers(256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    record = {"image": f"{i}.png", "question": "Is it red?", "answer": "no"}
    lines.append(json.dumps(record | {"demonstration": "It is not."}))
  path = tmp_path / "questions.jsonl"
  path.write_text("\n".join(lines))
  return path


@pytest.mark.usefixtures("quick_compile")
def test_a_published_qwen_trains_by_config_alone(
  qwen_folder, pictures, tmp_path
):
  model = families.read_config(qwen_folder)
  optimizer = OptimizerConfig(learning_rate=1e-3, trainable="projector/.*")
  qwen = Experiment(
    model=dataclasses.replace(model, dtype="float32"),
    pretrained=str(qwen_folder),
    data=DataConfig(
      demonstrations=str(pictures),
      prompts=str(pictures),
      prompt_tokens=160,
      completion_tokens=12,
      max_pixels=64 * 64,
    ),
    sft=SftConfig(steps=1, batch=4, micro_batch=2, optimizer=optimizer),
    policy=PolicyConfig(
      steps=1,
      prompts_per_step=4,
      samples_per_prompt=2,
      micro_batch=4,
      algorithm={"name": "reinforce"},
      weights={"format": 1.0},
      optimizer=optimizer,
      samples_every=1,
    ),
    evaluation=EvaluationConfig(source=str(pictures), size=4, batch=4),
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  setting = inputs.make_setting(qwen, mesh)
  opened = inputs.open_sources(qwen, setting, tmp_path / "run")
  with jax.set_mesh(mesh):
    start = weights.initial(qwen, mesh)
    before = jax.tree.map(np.asarray, start["projector"])
    r = run.Run(qwen, setting, opened, tmp_path / "run")
    trained = run.STAGES["sft"](r, run.Models(policy=start))
    after = trained.policy["projector"]
    moved = jax.tree.map(lambda a, b: np.any(a != b), before, after)
    assert all(jax.tree.leaves(moved))
    run.STAGES["policy"](r, trained)
  metrics = [
    json.loads((tmp_path / "run" / stage / "metrics.jsonl").read_text())
    for stage in ("sft", "policy")
  ]
  assert all(np.isfinite(m["loss"]) for m in metrics)
  assert metrics[1]["sampler_gap"] < 1e-4


def test_the_policy_is_evaluated_during_its_stage(monkeypatch):
  """On one batch of held-out questions, with the picture and without."""
  asked = []

  def make_evaluator(setting, config, source, terms):
    asked.append((config.size, config.batch, source, list(terms)))
    return lambda params: {"answer": params["right"]}

  def make_blindness(setting, source, size, micro_batch):
    asked.append((source, size, micro_batch))
    return lambda params: {"blind_same": 0.25}

  monkeypatch.setattr(run, "make_evaluator", make_evaluator)
  monkeypatch.setattr(run, "make_blindness", make_blindness)
  opened = inputs.Sources("held out", "demonstrations", "prompts")
  probe = run.make_probe(run.Run(DEMO, None, opened, None))
  assert asked == [
    (512, 512, "held out", ["answer"]),
    ("held out", 512, 512),
  ]
  assert probe({"right": 0.5}) == {"held_out_accuracy": 0.5, "blind_same": 0.25}
