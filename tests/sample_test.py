"""Answers of tiny models of each family, and the text as it comes."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from PIL import Image
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxrl_mm import experiment, inputs, sample, sharding, weights
from jaxrl_mm.data import loader, pictures
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.sources import Example
from jaxrl_mm.errors import InputError
from jaxrl_mm.models import config as sizes

pytestmark = pytest.mark.usefixtures("quick_compile")

QUESTION = "What is the sum?"


@pytest.fixture
def picture(tmp_path):
  path = tmp_path / "a.png"
  pixels = np.random.default_rng(0).integers(256, size=(61, 90, 3))
  Image.fromarray(pixels.astype(np.uint8)).save(path)
  return path


def _answer(folder, *images, length=6):
  """What is written, piece by piece, and how fast."""
  arguments = ["--model", str(folder), "--prompt", QUESTION]
  arguments += ["--max_tokens", str(length)]
  for image in images:
    arguments += ["--image", str(image)]
  written = []
  speed = sample.sample(sample.parse(arguments), written.append)
  return written, speed


def _expected(greedy, folder, *images, length=6):
  """The same from a padded prompt with room for more, on one device."""
  seen = tuple(pictures.read(str(path), Path(), "") for path in images)
  e = sample.describe(folder, len(images) + 1, length)
  setting = inputs.make_setting(e, sharding.make_mesh())
  row = loader.encode_prompt(
    Example("", seen, QUESTION, ""),
    0,
    setting.tokenizer,
    loader.Layout(1024, length, setting.layout.pictures, setting.layout.markup),
  )
  prompts = jax.tree.map(lambda x: jnp.asarray(x)[None], row)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  params = weights.initial(e, mesh)
  tokens = greedy(e.model, params, prompts, setting.image_token, length)[0]
  ids = tokens.tolist()
  return tok.decode(setting.tokenizer, [ids])[0], ids


@pytest.mark.parametrize("family", ["qwen_folder", "internvl_folder"])
def test_a_picture_is_asked_about(family, request, picture, greedy):
  folder = request.getfixturevalue(family)
  text, ids = _expected(greedy, folder, picture)
  assert tok.load(str(folder)).eos_token_id not in ids
  written, speed = _answer(folder, picture)
  assert "".join(written) == text.rstrip("\ufffd")
  assert len(written) == 2  # four tokens, then two
  assert speed.tokens == 6 and speed.rate > 0


def test_without_a_picture_an_end_of_the_generation_config_counts(
  qwen_folder, greedy, tmp_path
):
  _, ids = _expected(greedy, qwen_folder)
  folder = shutil.copytree(qwen_folder, tmp_path / "other")
  about = {"eos_token_id": [9999, ids[2]]}
  (folder / "generation_config.json").write_text(json.dumps(about))
  written, speed = _answer(folder)
  first = ids.index(ids[2])
  assert speed.tokens == first + 1
  words = tok.decode(tok.load(str(folder)), [ids[:first]])[0]
  assert "".join(written) == words.rstrip("\ufffd")


def test_a_run_answers_with_what_it_has_learned(tmp_path, monkeypatch):
  demo = experiment.Experiment(model=sizes.digits())
  folder = tmp_path / "run"
  experiment.claim_folder(folder, demo)
  e = sample.describe(folder, 1, 5)
  assert e.model == demo.model and e.data.completion_tokens == 5
  monkeypatch.setattr(weights, "final", lambda e, at, mesh: {"at": at})
  mesh = sample.make_mesh(e.model)
  assert weights.of_folder(e, folder, mesh) == {"at": folder}


def test_characters_are_written_when_they_are_whole():
  pieces = {c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}
  inner = tokenizers.Tokenizer(models.BPE(pieces, []))
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = decoders.ByteLevel()
  inner.add_special_tokens(["<end>", "<stop>"])
  words = PreTrainedTokenizerFast(
    tokenizer_object=inner, eos_token="<end>", pad_token="<end>"
  )
  written = []
  stop = words.convert_tokens_to_ids("<stop>")
  heard, speed = sample.make_listener(words, {stop}, written.append)
  ids = words.encode("né 日") + [stop, words.eos_token_id]
  assert len(ids) == 1 + 2 + 1 + 3 + 2  # bytes, and the two ends
  for i in ids:
    heard(0, np.array([i]))
  assert written == ["n", "", "é", " ", "", "", "日", "", ""]
  assert speed().tokens == len(ids)


def test_a_row_ends_behind_the_first_end():
  stop = sample.make_stop({7, 9})
  assert stop(np.array([1, 9, 2, 7]), 0) == 2
  assert stop(np.array([1, 2]), 0) is None
  assert sample.make_stop(set())(np.array([1, 2]), 0) is None


def test_what_cannot_be_answered_is_one_sentence(
  qwen_folder, picture, tmp_path
):
  with pytest.raises(InputError, match="nowhere.* cannot be read"):
    _answer(tmp_path / "nowhere")
  with pytest.raises(InputError, match="--image: .*b.png"):
    _answer(qwen_folder, tmp_path / "b.png")
  with pytest.raises(InputError, match="tokens, the answer may have 99999,"):
    _answer(qwen_folder, picture, length=99999)
  text = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
  text |= {"model_type": "llama", "intermediate_size": 8, "vocab_size": 300}
  (tmp_path / "config.json").write_text(json.dumps(text))
  with pytest.raises(InputError, match="text alone; leave out --image"):
    _answer(tmp_path, picture)


def test_the_command_line_ends_with_one_sentence(monkeypatch, tmp_path):
  command = ["sample", "--model", str(tmp_path), "--prompt", "a"]
  monkeypatch.setattr("sys.argv", command)
  with pytest.raises(SystemExit, match="error: .*config.json"):
    sample.main()
