"""A judge behind an OpenAI-compatible endpoint: vLLM, SGLang, a cloud.

Needs the extra `judge`.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import openai

from jaxrl_mm.rewards.judge import JudgeDown
from jaxrl_mm.structs import Number


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A judge that is asked over HTTP.

  Attributes:
    base_url: up to and including `/v1`.
    model: its name; None is the first that the endpoint lists.
    api_key: most servers of one's own ignore it.
    timeout: seconds until a request counts as failed.
    retries: of a request that failed, timed out or was turned away; the
      client waits longer before each.
    concurrency: requests under way at a time.
    temperature, max_tokens: of the sampling.
  """

  base_url: str
  model: str | None = None
  api_key: str = "unused"
  timeout: Number = 60.0
  retries: int = 3
  concurrency: int = 16
  temperature: Number = 0.1
  max_tokens: int = 4096

  def __call__(self, prompts: Sequence[str]) -> list[str]:
    """See `Judge`."""
    if not prompts:
      return []
    with openai.OpenAI(
      base_url=self.base_url,
      api_key=self.api_key,
      timeout=self.timeout,
      max_retries=self.retries,
    ) as client:
      try:
        return self._ask_all(client, prompts)
      except openai.OpenAIError as error:
        raise JudgeDown(
          f"the judge at {self.base_url} failed after {self.retries} retries "
          f"({type(error).__name__}: {error}); see that it runs"
        ) from error

  def _ask_all(
    self, client: openai.OpenAI, prompts: Sequence[str]
  ) -> list[str]:
    model = self.model or next(iter(client.models.list())).id
    with ThreadPoolExecutor(self.concurrency) as pool:
      # A future belongs to its prompt, so replies cannot be swapped.
      futures = [pool.submit(self._ask, client, model, p) for p in prompts]
      try:
        return [future.result() for future in futures]
      except openai.OpenAIError:
        pool.shutdown(cancel_futures=True)
        raise

  def _ask(self, client: openai.OpenAI, model: str, prompt: str) -> str:
    reply = client.chat.completions.create(
      model=model,
      messages=[{"role": "user", "content": prompt}],
      temperature=self.temperature,
      max_tokens=self.max_tokens,
    )
    return reply.choices[0].message.content or ""
