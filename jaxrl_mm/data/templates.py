"""From a question and its pictures to the ids the model reads."""

import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.tokenizer import Tokenizer
from jaxrl_mm.errors import InputError

PLACEHOLDER = "<image>"


class Markup(NamedTuple):
  """How the prompts of a model family hold pictures.

  Attributes:
    image: the token that stands for one image feature.
    start, end: around the image tokens of one picture.
    after: between a picture and what follows.
    video: the token that stands for one feature of a video; empty where the
      family has none of its own.
  """

  image: str
  start: str
  end: str
  after: str = ""
  video: str = ""


INTERNVL = Markup(tok.IMAGE_TOKEN, tok.IMAGE_START, tok.IMAGE_END, after="\n")
QWEN = Markup(
  "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", video="<|video_pad|>"
)
# Of models that see no pictures.
TEXT = Markup("", "", "")


def prompt_text(
  tokenizer: Tokenizer,
  question: str,
  pictures: int,
  markup: Markup = INTERNVL,
  earlier: Sequence[str] = (),
) -> str:
  """The user's turn in the tokenizer's chat form, ready for the answer.

  Before it stand the turns of user and assistant that there were earlier.
  """
  content = f"{PLACEHOLDER}{markup.after}" * pictures + question
  roles = itertools.cycle(("user", "assistant"))
  turns = zip(roles, (*earlier, content))
  return tokenizer.apply_chat_template(
    [{"role": role, "content": said} for role, said in turns],
    tokenize=False,
    add_generation_prompt=True,
  )


def prompt_ids(
  tokenizer: Tokenizer,
  question: str,
  image_tokens: Sequence[int],
  *,
  name: str,
  markup: Markup = INTERNVL,
  videos: Collection[int] = (),
  prefix: str = "",
  earlier: Sequence[str] = (),
) -> list[int]:
  """Ids of a prompt, each picture expanded to its image tokens.

  Args:
    tokenizer: with a chat template and the image tokens.
    question: the user's text.
    image_tokens: how many image tokens each picture becomes.
    name: of the sample, for the message.
    markup: of the model's family.
    videos: which of the pictures are videos, by number.
    prefix: what the answer is given to begin with.
    earlier: what user and assistant said before, in turn.

  Raises:
    InputError: the ids hold another number of image tokens than the pictures
      have features, for example because the question itself names the token.
  """
  text = prompt_text(tokenizer, question, len(image_tokens), markup, earlier)
  text += prefix
  for i, count in enumerate(image_tokens):
    token = markup.video if i in videos else markup.image
    expanded = markup.start + token * count + markup.end
    text = text.replace(PLACEHOLDER, expanded, 1)
  ids = tokenizer.encode(text, add_special_tokens=False)
  found = sum(map(ids.count, placeholders(tokenizer, markup)))
  if found != sum(image_tokens):
    raise InputError(
      f"sample {name}: its prompt has {found} image tokens and its pictures "
      f"have {sum(image_tokens)} image features; remove {markup.image} and "
      f"{PLACEHOLDER} from its question"
    )
  return ids


def placeholders(tokenizer: Tokenizer, markup: Markup) -> list[int]:
  """Ids of the image token and, where there is one, of the video token."""
  tokens = filter(None, (markup.image, markup.video))
  return [tok.token_id(tokenizer, token) for token in tokens]


def image_token(tokenizer: Tokenizer, markup: Markup) -> int:
  """Id of the image token; -1, no id at all, where there is none."""
  return next(iter(placeholders(tokenizer, markup)), -1)
