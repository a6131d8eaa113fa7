"""A model behind an OpenAI-compatible endpoint: vLLM, SGLang, a cloud."""

import base64
import dataclasses
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
from PIL import Image

from jaxrl_mm.rewards.judge import JudgeDown
from jaxrl_mm.structs import Number


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A model that is asked over HTTP, as a judge or as a teacher.

  The key is that of the environment, OPENAI_API_KEY; most servers of one's own
  need none.

  Attributes:
    base_url: up to and including `/v1`.
    model: its name; empty takes the first that the endpoint lists.
    timeout: seconds until a request counts as failed.
    retries: of a request that failed, timed out or was turned away; the
      client waits longer before each.
    concurrency: requests under way at a time.
    temperature, max_tokens: of the sampling.
  """

  base_url: str
  model: str = ""
  timeout: Number = 60.0
  retries: int = 3
  concurrency: int = 16
  temperature: Number = 0.1
  max_tokens: int = 4096

  def __call__(
    self,
    prompts: Sequence[str],
    pictures: Sequence[Sequence[np.ndarray]] | None = None,
  ) -> list[str]:
    """See `Judge`.

    Args:
      prompts: [B] texts.
      pictures: of each prompt, uint8 [height, width, 3]; they stand before its
        text.
    """
    if not prompts:
      return []
    with openai.OpenAI(
      base_url=self.base_url,
      api_key=os.environ.get("OPENAI_API_KEY", "unused"),
      timeout=self.timeout,
      max_retries=self.retries,
    ) as client:
      try:
        seen = pictures or [()] * len(prompts)
        contents = [_content(text, own) for text, own in zip(prompts, seen)]
        return self._ask_all(client, contents)
      except openai.OpenAIError as error:
        raise JudgeDown(
          f"the model at {self.base_url} failed after {self.retries} retries "
          f"({type(error).__name__}: {error}); see that it runs: the same "
          "command then goes on where it stopped"
        ) from error

  def _ask_all(self, client: openai.OpenAI, contents: Sequence) -> list[str]:
    model = self.model or next(iter(client.models.list())).id
    with ThreadPoolExecutor(self.concurrency) as pool:
      # A future belongs to its prompt, so replies cannot be swapped.
      futures = [pool.submit(self._ask, client, model, c) for c in contents]
      try:
        return [future.result() for future in futures]
      except openai.OpenAIError:
        pool.shutdown(cancel_futures=True)
        raise

  def _ask(self, client: openai.OpenAI, model: str, content: Any) -> str:
    reply = client.chat.completions.create(
      model=model,
      messages=[{"role": "user", "content": content}],
      temperature=self.temperature,
      max_tokens=self.max_tokens,
    )
    return reply.choices[0].message.content or ""


def _content(text, pictures):
  """What the user says: a text, or parts with the pictures first."""
  if not pictures:
    return text
  urls = [{"url": _data_url(picture)} for picture in pictures]
  images = [{"type": "image_url", "image_url": url} for url in urls]
  return [*images, {"type": "text", "text": text}]


def _data_url(picture):
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "PNG")
  return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
