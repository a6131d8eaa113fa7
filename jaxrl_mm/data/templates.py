"""From a question and its pictures to the ids the model reads."""

from collections.abc import Sequence

from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.data.tokenizer import Tokenizer
from jaxrl_mm.errors import InputError

PLACEHOLDER = "<image>"


def prompt_text(tokenizer: Tokenizer, question: str, pictures: int) -> str:
  """The user's turn in the tokenizer's chat form, ready for the answer."""
  content = f"{PLACEHOLDER}\n" * pictures + question
  return tokenizer.apply_chat_template(
    [{"role": "user", "content": content}],
    tokenize=False,
    add_generation_prompt=True,
  )


def prompt_ids(
  tokenizer: Tokenizer,
  question: str,
  image_tokens: Sequence[int],
  *,
  name: str,
) -> list[int]:
  """Ids of a prompt, each picture expanded to its image tokens.

  Args:
    tokenizer: with a chat template and the image tokens.
    question: the user's text.
    image_tokens: how many image tokens each picture becomes.
    name: of the sample, for the message.

  Raises:
    InputError: the ids hold another number of image tokens than the pictures
      have features, for example because the question itself names the token.
  """
  text = prompt_text(tokenizer, question, len(image_tokens))
  for count in image_tokens:
    expanded = tok.IMAGE_START + tok.IMAGE_TOKEN * count + tok.IMAGE_END
    text = text.replace(PLACEHOLDER, expanded, 1)
  ids = tokenizer.encode(text, add_special_tokens=False)
  found = ids.count(tok.token_id(tokenizer, tok.IMAGE_TOKEN))
  if found != sum(image_tokens):
    raise InputError(
      f"sample {name}: its prompt has {found} image tokens and its pictures "
      f"have {sum(image_tokens)} image features; remove {tok.IMAGE_TOKEN} and "
      f"{PLACEHOLDER} from its question"
    )
  return ids
