"""What a run finds wrong before its first stage, and what models it takes."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxrl_mm import run, sharding, weights
from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate.accuracy import EvaluationConfig
from jaxrl_mm.experiment import DataConfig, Experiment
from jaxrl_mm.models import config as models
from jaxrl_mm.models.huggingface import families
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.rewards.endpoint import Endpoint
from jaxrl_mm.train.difficulty import DifficultyConfig
from jaxrl_mm.train.policy import PolicyConfig
from jaxrl_mm.train.sft import SftConfig

DEMO = Experiment(model=models.digits())


def test_a_small_vocabulary_is_refused():
  small = dataclasses.replace(DEMO, model=models.digits(vocab=8))
  with pytest.raises(InputError, match="vocab is 8"):
    run.make_setting(small, sharding.make_mesh())


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


def test_a_disk_without_room_for_the_checkpoints(tmp_path, monkeypatch):
  weights = {"decoder": {"up": jnp.zeros((250, 1000))}}
  free = lambda left: monkeypatch.setattr(
    run.shutil, "disk_usage", lambda _: SimpleNamespace(free=left)
  )
  plain = PolicyConfig(algorithm={"name": "grpo"})
  e = dataclasses.replace(DEMO, policy=plain)
  check = lambda done: run.check_room(e, tmp_path, weights, done)
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
  monkeypatch.setattr(run.shutil, "disk_usage", lambda _: disk)
  with pytest.raises(InputError, match="lower config.loop.keep"):
    run.check_room(e, tmp_path, weights, ())
  disk.free = 2 * pictures
  run.check_room(e, tmp_path, weights, ())


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
    with pytest.raises(InputError, match=f"teacher: .* {server.url} failed"):
      run.run(asks, tmp_path)
    # Nor is it waited for.
    assert len(server.requests) == 1
    server.reply = lambda prompt, times: "1"
    run.check_endpoints(asks, ["sft"])
    assert len(server.requests) == 2
    run.check_endpoints(asks, ["sft", "difficulty"])
    run.check_endpoints(dataclasses.replace(asks, stages=("sft",)), [])
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
    with pytest.raises(InputError, match=r"config\.consistency: .*BadRequest"):
      run.check_endpoints(judged, [])
    unused = dataclasses.replace(policy, weights={"result": 1.0})
    run.check_endpoints(dataclasses.replace(judged, policy=unused), [])
    assert len(server.requests) == 1


def test_several_pictures_have_room():
  data = dataclasses.replace(DEMO.data, max_tiles=3, max_pictures=2)
  layout = run.make_layout(dataclasses.replace(DEMO, data=data))
  assert layout.pictures.max_pictures == 2
  assert layout.pictures.room == 2 * (3 + 1)


def test_a_model_of_text_alone_needs_no_image_tokens():
  model = dataclasses.replace(models.digits(), vision=None)
  setting = run.make_setting(
    dataclasses.replace(DEMO, model=model), sharding.make_mesh()
  )
  assert setting.layout.pictures is None
  assert setting.image_token == -1


def test_a_qwen_makes_room_for_its_pictures():
  qwen = dataclasses.replace(DEMO, model=models.qwen2_5_vl_7b())
  layout = run.make_layout(qwen)
  assert (layout.markup.image, layout.pictures.window) == ("<|image_pad|>", 8)
  # Of 1,280 tokens: a picture of 25 x 51 takes 7 x 13.
  assert layout.pictures.windows == 91
  data = dataclasses.replace(DEMO.data, max_pictures=2, max_pixels=28 * 28 * 64)
  layout = run.make_layout(dataclasses.replace(qwen, data=data))
  assert layout.pictures.windows == 2 * 6  # of 5 x 12 each
  data = dataclasses.replace(data, windows=5, frames=2)
  layout = run.make_layout(dataclasses.replace(qwen, data=data))
  assert (layout.pictures.windows, layout.pictures.frames) == (5, 2)
  data = dataclasses.replace(data, frames=3)
  with pytest.raises(InputError, match="frames is 3; .* to 2, the frames"):
    run.make_layout(dataclasses.replace(qwen, data=data))


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
  setting = run.make_setting(qwen, mesh)
  opened = run.open_sources(qwen, setting, tmp_path / "run")
  with jax.set_mesh(mesh):
    start = weights.initial(qwen, mesh)
    before = jax.tree.map(np.asarray, start["projector"])
    r = run.Run(qwen, setting, opened, lambda params: {}, tmp_path / "run")
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
  """On one batch of held-out questions, beside the blindness."""
  asked = []

  def make_evaluator(setting, config, source, terms):
    asked.append((config.size, config.batch, source, list(terms)))
    return lambda params: {"answer": params["right"]}

  monkeypatch.setattr(run, "make_evaluator", make_evaluator)
  probe = run.make_probe(
    run.Run(
      DEMO,
      setting=None,
      sources=run.Sources("held out", "demonstrations", "prompts"),
      probe=lambda params: {"blind_same": 0.25},
      workdir=None,
    )
  )
  assert asked == [(512, 512, "held out", ["answer"])]
  assert probe({"right": 0.5}) == {"held_out_accuracy": 0.5, "blind_same": 0.25}


def _pairs(folder, texts):
  lines = [
    {"question": "What is the sum?", "chosen": good, "rejected": bad}
    for good, bad in texts
  ]
  path = folder / "pairs.jsonl"
  path.write_text("\n".join(map(json.dumps, lines)))
  return f"pairs:{path}"


def _opened(folder, **data):
  e = dataclasses.replace(DEMO, data=dataclasses.replace(DEMO.data, **data))
  setting = run.make_setting(e, sharding.make_mesh())
  return run.open_sources(e, setting, folder)


def test_pairs_of_a_data_set_take_the_place_of_collected_ones(tmp_path):
  assert _opened(tmp_path).given is None
  name = _pairs(tmp_path, [("3", "4"), ("5", "6")])
  given = _opened(tmp_path, pairs=name).given
  assert [given[i].question for i in (0, 1)] == 2 * ["What is the sum?"]


def test_bad_records_are_passed_over_only_where_the_config_allows(tmp_path):
  long = "1" * 20
  name = _pairs(tmp_path, [("3", "4"), ("5", long), ("7", "7"), ("8", "9")])
  strict = _opened(tmp_path, pairs=name).given
  with pytest.raises(InputError, match="jsonl:3: both responses are the same"):
    strict[2]
  assert not list(tmp_path.glob("skipped*"))
  given = _opened(tmp_path, pairs=name, skip_bad=True).given
  made = _opened(tmp_path).prompts
  assert [given[i].name.rpartition(":")[2] for i in range(4)] == list("1444")
  (path,) = tmp_path.glob("skipped*")
  first, second = map(json.loads, path.read_text().splitlines())
  assert (first["source"], first["record"]) == (name, 1)
  assert "21 tokens and config.data.completion_tokens is 14" in first["reason"]
  assert second["record"] == 2
  assert made[0].name == "digits/train/0"
