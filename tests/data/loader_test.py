import dataclasses
from functools import partial

import numpy as np
import pytest

from jaxrl_mm.data import images, loader, sources, tokenizer
from jaxrl_mm.data.images import Tiles
from jaxrl_mm.data.loader import Layout
from jaxrl_mm.data.sources import Digits, Example
from jaxrl_mm.errors import InputError
from jaxrl_mm.structs import Demonstrations, Prompts

LAYOUT = Layout(
  prompt_tokens=40,
  completion_tokens=20,
  pictures=Tiles(max_tiles=3, image_size=8, tokens=4),
)
SIZE = 23


@pytest.fixture(scope="module")
def words():
  return tokenizer.build(sources.digits_texts())


@pytest.fixture(scope="module")
def source():
  return Digits("train", size=SIZE, seed=0)


@pytest.fixture(scope="module")
def encode(words):
  return partial(loader.encode_prompt, tokenizer=words, layout=LAYOUT)


# ---------------------------------------------------------------- one row
def test_a_layout_has_room_for_the_thumbnail():
  assert LAYOUT.pictures.room == 4
  assert Tiles(max_tiles=1, image_size=8, tokens=4).room == 1


def test_a_prompt_is_padded_on_the_left(words, source, encode):
  example = source[0]
  row = encode(example, 7)
  tiles = images.tile(example.pictures[0], image_size=8, max_tiles=3)
  assert row.tokens.shape == row.mask.shape == (40,)
  assert row.images.shape == (4, 8, 8, 3) and row.images.dtype == np.uint8
  room = int((~row.mask).sum())
  assert room > 0 and row.mask[room:].all()
  assert (row.tokens[:room] == words.pad_token_id).all()
  image = words.convert_tokens_to_ids("<IMG_CONTEXT>")
  assert (row.tokens == image).sum() == 4 * len(tiles)
  assert words.decode(row.tokens[room:]) == (
    "<|im_start|>user\n<img>"
    + "<IMG_CONTEXT>" * 4 * len(tiles)
    + f"</img>\n{example.question}<|im_end|>\n<|im_start|>assistant\n"
  )
  np.testing.assert_array_equal(row.images[: len(tiles)], tiles)
  assert (row.images[len(tiles) :] == 0).all()
  assert row.group == 7


def test_a_demonstration_is_padded_on_the_right(words, source):
  example = source[0]
  row = loader.encode_demonstration(example, 7, words, LAYOUT)
  length = int(row.mask.sum())
  assert row.mask[:length].all()
  assert words.decode(row.tokens[: length - 1]) == example.demonstration
  assert row.tokens[length - 1] == words.eos_token_id
  assert (row.tokens[length:] == words.pad_token_id).all()
  prompt = loader.encode_prompt(example, 7, words, LAYOUT)
  for mine, theirs in zip(row.prompts, prompt):
    np.testing.assert_array_equal(mine, theirs)


def test_a_prompt_that_is_too_long_names_sample_and_both_numbers(words, source):
  length = int(loader.encode_prompt(source[3], 0, words, LAYOUT).mask.sum())
  tight = Layout(length - 1, 20, LAYOUT.pictures)
  with pytest.raises(InputError) as error:
    loader.encode_prompt(source[3], 0, words, tight)
  assert str(error.value) == (
    f"sample digits/train/3: its prompt has {length} tokens and "
    f"config.data.prompt_tokens is {length - 1}; raise it or lower "
    "config.data.max_tiles or config.data.max_pixels"
  )
  exact = Layout(length, 20, LAYOUT.pictures)
  assert loader.encode_prompt(source[3], 0, words, exact).mask.all()


def test_a_demonstration_that_is_too_long_is_named(words, source):
  tight = Layout(40, 3, LAYOUT.pictures)
  with pytest.raises(
    InputError, match="digits/train/0: .*completion_tokens is 3"
  ):
    loader.encode_demonstration(source[0], 0, words, tight)


def test_an_example_without_a_demonstration_is_named(words, source):
  bare = source[0]._replace(demonstration="")
  with pytest.raises(InputError, match="digits/train/0 has no 'demonstration'"):
    loader.encode_demonstration(bare, 0, words, LAYOUT)


def test_rows_are_stacked_field_by_field(words, source):
  rows = [
    (loader.encode_demonstration(source[i], i, words, LAYOUT), source[i])
    for i in range(3)
  ]
  batch = loader.stack(rows)
  assert isinstance(batch.arrays, Demonstrations)
  assert isinstance(batch.arrays.prompts, Prompts)
  assert batch.arrays.tokens.shape == (3, 20)
  np.testing.assert_array_equal(batch.arrays.prompts.group, [0, 1, 2])
  np.testing.assert_array_equal(
    batch.arrays.prompts.images[2], rows[2][0].prompts.images
  )
  assert [e.name for e in batch.examples] == [source[i].name for i in range(3)]


# ---------------------------------------------------------------- batches
def _draws(iterator, count):
  """Names and group numbers of the next `count` batches."""
  names, groups = [], []
  for _ in range(count):
    batch = next(iterator)
    names += [int(e.name.split("/")[-1]) for e in batch.examples]
    groups += batch.arrays.group.tolist()
  return names, groups


def test_batches_hold_what_their_examples_say(source, encode):
  batch = next(loader.batches(source, encode, 5, seed=0))
  assert batch.arrays.tokens.shape == (5, 40)
  for i, example in enumerate(batch.examples):
    row = encode(example, int(batch.arrays.group[i]))
    np.testing.assert_array_equal(batch.arrays.tokens[i], row.tokens)
    np.testing.assert_array_equal(batch.arrays.images[i], row.images)


def test_every_epoch_is_another_shuffle_of_all_examples(source, encode):
  names, groups = _draws(loader.batches(source, encode, SIZE, seed=0), 3)
  epochs = [names[i : i + SIZE] for i in range(0, 3 * SIZE, SIZE)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(SIZE))
    assert epoch != sorted(epoch)
  assert epochs[0] != epochs[1] != epochs[2]
  assert len(set(groups)) == 3 * SIZE


def test_the_seed_decides_the_order(source, encode):
  draw = lambda seed: _draws(loader.batches(source, encode, 4, seed=seed), 5)
  assert draw(1) == draw(1)
  assert draw(1)[0] != draw(2)[0]


@pytest.mark.parametrize("before", [0, 1, 7])
def test_a_restored_iterator_goes_on_where_it_was(source, encode, before):
  """Seven batches of five are in the second epoch of 23 examples."""
  iterator = loader.batches(source, encode, 5, seed=0)
  _draws(iterator, before)
  state = iterator.get_state()
  expected = _draws(iterator, 6)
  fresh = loader.batches(source, encode, 5, seed=0)
  fresh.set_state(state)
  assert _draws(fresh, 6) == expected
  iterator.set_state(state)
  assert _draws(iterator, 6) == expected


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_what_one_would_see(source, encode, processes):
  """Their batches side by side are the draws of a single process."""
  rows, count = 3, 10
  part = lambda i: range(i * rows, (i + 1) * rows)
  size = rows * processes
  parts = [
    _draws(loader.batches(source, encode, size, seed=0, rows=part(i)), count)
    for i in range(processes)
  ]
  batches = [range(i, i + rows) for i in range(0, rows * count, rows)]
  together = [
    [part[field][i] for batch in batches for part in parts for i in batch]
    for field in (0, 1)
  ]
  single = loader.batches(source, encode, size, seed=0)
  assert tuple(together) == _draws(single, count)
  assert len(set(together[1])) == rows * count * processes


def test_a_bad_example_stops_the_loader_with_its_own_message(words, encode):
  class Bad:
    def __len__(self):
      return 4

    def __getitem__(self, index):
      question = "What is the sum?" + "<IMG_CONTEXT>" * (index == 2)
      picture = np.zeros((8, 8, 3), np.uint8)
      return Example(f"bad/{index}", (picture,), question, "1")

  with pytest.raises(InputError, match="sample bad/2: its prompt has 5 image"):
    _draws(loader.batches(Bad(), encode, 2, seed=0), 2)


def test_the_beginning_of_the_answer_stands_in_the_prompt(words, source):
  given = dataclasses.replace(LAYOUT, prefix="<think>")
  example = source[0]
  plain = loader.encode_demonstration(example, 0, words, LAYOUT)
  row = loader.encode_demonstration(example, 0, words, given)
  tag = words.encode("<think>", add_special_tokens=False)
  whole = lambda r: [
    *r.prompts.tokens[r.prompts.mask],
    *r.tokens[r.mask],
  ]
  assert whole(row) == whole(plain)
  assert row.prompts.tokens[-len(tag) :].tolist() == tag
  assert row.mask.sum() == plain.mask.sum() - len(tag)
  other = dataclasses.replace(LAYOUT, prefix="Well, ")
  with pytest.raises(InputError, match="does not begin with .*'Well, '"):
    loader.encode_demonstration(example, 0, words, other)
