import numpy as np
import pytest

from jaxrl_mm.data import sources, tokenizer
from jaxrl_mm.errors import InputError
from jaxrl_mm.sampling.stops import stop_strings


@pytest.fixture(scope="module")
def words():
  return tokenizer.build(sources.digits_texts())


@pytest.fixture(scope="module")
def ids(words):
  text = "<think>12+3=15</think><answer>15</answer>"
  return np.array(words.encode(text, add_special_tokens=False))


def _kept(words, ids, strings, segment):
  """How many tokens are kept when `segment` of them come at a time."""
  stop = stop_strings(words, strings)
  for seen in range(0, len(ids), segment):
    keep = stop(ids[: seen + segment], seen)
    if keep is not None:
      return keep
  return None


@pytest.mark.parametrize("segment", [1, 2, 3, 100])
def test_a_row_ends_with_the_token_that_completes_a_string(words, ids, segment):
  read = lambda strings: words.decode(
    ids[: _kept(words, ids, strings, segment)]
  )
  assert read(["</think>"]) == "<think>12+3=15</think>"
  # Over several tokens, and the first of several strings.
  assert read(["=15"]) == "<think>12+3=15"
  assert read(["</answer>", "2+3"]) == "<think>12+3"
  assert _kept(words, ids, ["16"], segment) is None


def test_a_string_inside_a_token_keeps_the_token_whole(words, ids):
  assert words.decode(ids[: _kept(words, ids, ["thin"], 4)]) == "<think>"


@pytest.mark.parametrize("strings", [[], ["a", ""]])
def test_a_string_without_letters_is_told(words, strings):
  with pytest.raises(InputError, match="give at least one letter"):
    stop_strings(words, strings)
