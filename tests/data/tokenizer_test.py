import pytest

from jaxrl_mm.data import sources, tokenizer
from jaxrl_mm.errors import InputError


@pytest.fixture(scope="module")
def words():
  return tokenizer.build(sources.digits_texts())


@pytest.mark.parametrize(
  "text",
  [
    "What is the sum?",
    "<think>3+4=7</think><answer>7</answer>",
    "How many threes?\n12,3",
    "",
  ],
)
def test_decoding_undoes_encoding(words, text):
  ids = words.encode(text, add_special_tokens=False)
  assert tokenizer.decode(words, [ids]) == [text]


def test_digits_stand_alone_and_tags_are_one_token(words):
  encode = lambda text: words.encode(text, add_special_tokens=False)
  assert len(encode("123")) == 3
  assert len(encode("<think>12</think>")) == 4
  assert len(encode("<IMG_CONTEXT>" * 5)) == 5


def test_all_of_the_digits_task_is_known(words):
  source = sources.Digits("train", size=200, seed=0)
  for example in map(source.__getitem__, range(200)):
    for text in (example.question, example.demonstration):
      ids = words.encode(text, add_special_tokens=False)
      assert words.unk_token_id not in ids, text
      assert tokenizer.decode(words, [ids]) == [text]


def test_the_vocabulary_does_not_depend_on_the_order_of_the_texts():
  texts = sources.digits_texts()
  forward, backward = map(tokenizer.build, (texts, texts[::-1]))
  assert forward.get_vocab() == backward.get_vocab()


def test_the_chat_form_is_chatml(words):
  text = words.apply_chat_template(
    [{"role": "user", "content": "What is the sum?"}],
    tokenize=False,
    add_generation_prompt=True,
  )
  assert text == (
    "<|im_start|>user\nWhat is the sum?<|im_end|>\n<|im_start|>assistant\n"
  )


def test_a_completion_ends_with_the_end_of_turn(words):
  ids = tokenizer.completion_ids(words, "7")
  assert ids[-1] == words.convert_tokens_to_ids("<|im_end|>")
  assert words.decode(ids[:-1]) == "7"


def test_decode_drops_padding_and_the_end_but_keeps_the_tags(words):
  ids = tokenizer.completion_ids(words, "<answer>7</answer>")
  padded = [*ids, words.pad_token_id, words.pad_token_id]
  assert tokenizer.decode(words, [padded, []]) == ["<answer>7</answer>", ""]


def test_special_tokens_are_asked_for_by_name(words):
  for token in ("<IMG_CONTEXT>", "<|im_end|>", "</think>"):
    assert words.get_vocab()[token] == tokenizer.token_id(words, token)


def test_a_missing_token_is_named(words):
  with pytest.raises(InputError, match="has no token '<video>'"):
    tokenizer.token_id(words, "<video>")


def test_a_missing_folder_says_what_to_do(tmp_path):
  with pytest.raises(InputError, match="does not exist; download the model"):
    tokenizer.load(str(tmp_path / "absent"))


def test_a_saved_tokenizer_loads_as_it_was(words, tmp_path):
  words.save_pretrained(tmp_path)
  again = tokenizer.load(str(tmp_path))
  text = "<think>3+4=7</think>"
  assert again.encode(text) == words.encode(text)
  assert again.get_vocab() == words.get_vocab()
  assert again.eos_token_id == words.eos_token_id
  assert again.pad_token_id == words.pad_token_id
