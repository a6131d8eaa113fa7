"""Which module reads which checkpoint."""

import json
import types

import pytest

from jaxrl_mm.errors import InputError
from jaxrl_mm.models import config
from jaxrl_mm.models.huggingface import (
  families,
  internvl,
  qwen2_5_vl,
  safetensors,
  text,
)


def _folder(path, **fields):
  (path / "config.json").write_text(json.dumps(fields))
  return path


@pytest.mark.parametrize(
  "kind, module",
  [
    ("qwen2_5_vl", qwen2_5_vl),
    ("internvl", internvl),
    ("internvl_chat", internvl),
    ("skywork_chat", internvl),
    ("qwen2", text),
    ("qwen3", text),
    ("llama", text),
  ],
)
def test_model_type_decides(tmp_path, kind, module):
  assert families.family(_folder(tmp_path, model_type=kind)) is module


@pytest.mark.parametrize("kind", ["gpt2", None, ["qwen2"], 3])
def test_an_unknown_model_type_lists_the_known(tmp_path, kind):
  with pytest.raises(InputError, match="qwen2_5_vl, internvl, .*llama"):
    families.family(_folder(tmp_path, model_type=kind))


def test_configs_that_cannot_be_read(tmp_path):
  with pytest.raises(InputError, match="No such file.*its config.json"):
    families.read_config(tmp_path)
  for text_of_file in ("{", "[1]", '"qwen2"', "[" * 100_000):
    (tmp_path / "config.json").write_text(text_of_file)
    with pytest.raises(InputError, match="no JSON object"):
      families.read_config(tmp_path)


def test_a_family_reads_the_fields(tmp_path, monkeypatch):
  family, seen = types.ModuleType("mine"), []
  family.read_config = lambda fields: seen.append(fields) or config.digits()
  monkeypatch.setitem(families.FAMILIES, "mine", family)
  folder = _folder(tmp_path, model_type="mine", width=3)
  (folder / safetensors.VALUE_HEAD).touch()
  assert families.read_config(folder) == config.digits()
  assert seen == [{"model_type": "mine", "width": 3}]


@pytest.mark.parametrize(
  "fields, length",
  [
    ({"max_position_embeddings": 8}, 8),
    ({"text_config": {"max_position_embeddings": 9}}, 9),
    ({"llm_config": {"max_position_embeddings": 10}}, 10),
    ({"llm_config": None}, None),
  ],
)
def test_what_a_checkpoint_reads(tmp_path, fields, length):
  assert families.read_context(_folder(tmp_path, **fields)) == length


def test_a_value_head_beside_qwen_makes_a_reward_model(tmp_path, monkeypatch):
  monkeypatch.setattr(qwen2_5_vl, "read_config", lambda _: config.digits())
  folder = _folder(tmp_path, model_type="qwen2_5_vl")
  assert not families.read_config(folder).value_head
  (folder / safetensors.VALUE_HEAD).touch()
  assert families.read_config(folder).value_head
