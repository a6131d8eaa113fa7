"""Records on disk, and their rows."""

import dataclasses
import json

import numpy as np
import pytest

from jaxrl_mm.data import loader, pairs, sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.images import Tiles
from jaxrl_mm.data.pairs import PairSource, Record
from jaxrl_mm.errors import InputError

SOURCE = sources.Digits("train", size=10, seed=0)
TOKENIZER = tok.build(sources.digits_texts())
LAYOUT = loader.Layout(28, 6, Tiles(max_tiles=3, image_size=8, tokens=1))


def _record(index, tokens=([5, 6], [7, 8, 9])):
  return Record(index, ("a", "b"), tokens, (1.5, -0.5), (-0.25, -3.125))


def test_a_record_comes_back_from_json():
  written = json.dumps(dataclasses.asdict(_record(3)))
  back = pairs.parse(json.loads(written))
  assert back == _record(3) and back.gap == 2


def test_a_pair_keeps_its_question_and_pads_its_answers():
  pair = PairSource([_record(3)], SOURCE)[0]
  assert pair.example.question == SOURCE[3].question
  row = pairs.encode(pair, 17, TOKENIZER, LAYOUT)
  pad = TOKENIZER.pad_token_id
  np.testing.assert_array_equal(row.tokens[0], [5, 6, pad, pad, pad, pad])
  np.testing.assert_array_equal(row.mask.sum(1), [2, 3])
  np.testing.assert_array_equal(row.reference_logp, [-0.25, -3.125])
  assert row.prompts.group == 17


def test_a_completion_that_does_not_fit_is_named():
  pair = PairSource([_record(3, ([1] * 7, [2]))], SOURCE)[0]
  with pytest.raises(InputError, match="digits/train/3: .*7 tokens.*is 6"):
    pairs.encode(pair, 0, TOKENIZER, LAYOUT)
