import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxrl_mm.data import sources, templates, tokenizer
from jaxrl_mm.errors import InputError


@pytest.fixture(scope="module")
def words():
  return tokenizer.build([*sources.digits_texts(), "<image>", " <"])


def test_each_picture_stands_in_front_of_the_question(words):
  assert templates.prompt_text(words, "Which is larger?", 2) == (
    "<|im_start|>user\n<image>\n<image>\nWhich is larger?<|im_end|>\n"
    "<|im_start|>assistant\n"
  )


def test_each_picture_becomes_its_own_number_of_tokens(words):
  ids = templates.prompt_ids(words, "What is the sum?", [2, 3], name="a")
  image = "<img>" + "<IMG_CONTEXT>"
  assert words.decode(ids) == (
    f"<|im_start|>user\n{image}<IMG_CONTEXT></img>\n"
    f"{image}<IMG_CONTEXT><IMG_CONTEXT></img>\n"
    "What is the sum?<|im_end|>\n<|im_start|>assistant\n"
  )


def test_earlier_turns_stand_before_the_question(words):
  text = templates.prompt_text(words, "And now?", 1, earlier=("Sum?", "3"))
  assert text == (
    "<|im_start|>user\nSum?<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
    "<|im_start|>user\n<image>\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
  )
  one, all_ = (
    templates.prompt_ids(words, "Which?", [], name="a", earlier=earlier)
    for earlier in ((), ("What is the sum?", "3"))
  )
  assert all_[-len(one) :] == one and len(all_) > len(one)


def test_without_pictures_there_are_no_image_tokens(words):
  ids = templates.prompt_ids(words, "What is the sum?", [], name="a")
  assert tokenizer.token_id(words, tokenizer.IMAGE_TOKEN) not in ids


def test_a_question_about_the_placeholder_is_plain_text(words):
  ids = templates.prompt_ids(words, "What is<image>?", [1], name="a")
  assert words.decode(ids).count("<IMG_CONTEXT>") == 1
  assert "What is<image>?" in words.decode(ids)


def test_another_number_of_image_tokens_names_sample_and_both_counts(words):
  question = "How many <IMG_CONTEXT><IMG_CONTEXT>?"
  with pytest.raises(InputError) as error:
    templates.prompt_ids(words, question, [4], name="file:7")
  assert str(error.value) == (
    "sample file:7: its prompt has 6 image tokens and its pictures have 4 "
    "image features; remove <IMG_CONTEXT> and <image> from its question"
  )


def test_a_tokenizer_without_image_tokens_reads_text():
  """Word by word, with a chat form and no token but the end of a turn."""
  inner = tokenizers.Tokenizer(
    models.WordLevel({"<unk>": 0, "<end>": 1, "ask": 2}, unk_token="<unk>")
  )
  inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  plain = PreTrainedTokenizerFast(
    tokenizer_object=inner,
    unk_token="<unk>",
    eos_token="<end>",
    chat_template="{{ messages[0].content }} <end>",
  )
  ids = templates.prompt_ids(
    plain, "ask me", [], name="a", markup=templates.TEXT
  )
  assert ids == [2, 0, 1]
  assert templates.image_token(plain, templates.TEXT) == -1
  with pytest.raises(InputError, match="has no token '<IMG_CONTEXT>'"):
    templates.prompt_ids(plain, "ask me", [], name="a")
