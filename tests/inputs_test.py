"""The tokenizer, the shapes and the sources of a run."""

import dataclasses
import json

import pytest

from jaxrl_mm import inputs, sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models import config as models

DEMO = Experiment(model=models.digits())


def test_a_small_vocabulary_is_refused():
  small = dataclasses.replace(DEMO, model=models.digits(vocab=8))
  with pytest.raises(InputError, match="vocab is 8"):
    inputs.make_setting(small, sharding.make_mesh())


def test_several_pictures_have_room():
  data = dataclasses.replace(DEMO.data, max_tiles=3, max_pictures=2)
  layout = inputs.make_layout(dataclasses.replace(DEMO, data=data))
  assert layout.pictures.max_pictures == 2
  assert layout.pictures.room == 2 * (3 + 1)


def test_a_model_of_text_alone_needs_no_image_tokens():
  model = dataclasses.replace(models.digits(), vision=None)
  setting = inputs.make_setting(
    dataclasses.replace(DEMO, model=model), sharding.make_mesh()
  )
  assert setting.layout.pictures is None
  assert setting.image_token == -1


def test_a_qwen_makes_room_for_its_pictures():
  qwen = dataclasses.replace(DEMO, model=models.qwen2_5_vl_7b())
  layout = inputs.make_layout(qwen)
  assert (layout.markup.image, layout.pictures.window) == ("<|image_pad|>", 8)
  # Of 1,280 tokens: a picture of 25 x 51 takes 7 x 13.
  assert layout.pictures.windows == 91
  data = dataclasses.replace(DEMO.data, max_pictures=2, max_pixels=28 * 28 * 64)
  layout = inputs.make_layout(dataclasses.replace(qwen, data=data))
  assert layout.pictures.windows == 2 * 6  # of 5 x 12 each
  data = dataclasses.replace(data, windows=5, frames=2)
  layout = inputs.make_layout(dataclasses.replace(qwen, data=data))
  assert (layout.pictures.windows, layout.pictures.frames) == (5, 2)
  data = dataclasses.replace(data, frames=3)
  with pytest.raises(InputError, match="frames is 3; .* to 2, the frames"):
    inputs.make_layout(dataclasses.replace(qwen, data=data))


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
  setting = inputs.make_setting(e, sharding.make_mesh())
  return inputs.open_sources(e, setting, folder)


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
