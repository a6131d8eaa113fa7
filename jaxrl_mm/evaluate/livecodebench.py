"""LiveCodeBench: programs for fresh contest problems.

https://arxiv.org/abs/2403.07974. Its own runner executes the programs in the
evaluating process; here they run in `rewards.sandbox` or not at all.
"""

import base64
import binascii
import io
import json
import pickle
import zlib
from pathlib import Path

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import multimodal, records
from jaxrl_mm.evaluate.items import Benchmark, Item, Verdict
from jaxrl_mm.evaluate.records import Record
from jaxrl_mm.rewards import code, sandbox
from jaxrl_mm.rewards.code import Case
from jaxrl_mm.rewards.sandbox import Limits

# Of the released runner.
LIMITS = Limits(seconds=6, memory=2**32)

_PROMPT = """\
You are an expert Python programmer. You will be given a question (problem \
specification) and will generate a correct Python program that matches the \
specification and passes all tests.

### Question:
{question}

### Format: {form}
```python
{starter}
```

### Answer: (use the provided format with backticks)
"""
_STARTER = (
  "You will use the following starter code to write the solution to the "
  "problem and enclose your code within delimiters."
)
_STDIN = (
  "Read the inputs from stdin solve the problem and write the answer to stdout "
  "(do not directly test on the sample inputs). Enclose your code within "
  "delimiters as follows. Ensure that when the python program runs, it reads "
  "the inputs, runs the algorithm and writes output to STDOUT."
)


def read(folder: Path) -> list[Item]:
  """The problems of `test*.jsonl` of the code generation set.

  Scores are comparable only over the same window of contest dates; a folder
  holds the window's files alone. The date is in the details.

  Raises:
    InputError: also where there is no sandbox to try the programs in.
  """
  sandbox.check()
  return [_item(record) for record in records.read(folder)]


def _item(record: Record) -> Item:
  metadata = json.loads(record.values.get("metadata") or "{}")
  return Item(
    id=records.get(record, "question_id", str),
    question=records.get(record, "question_content", str),
    answer="",
    category=str(record.values.get("difficulty") or ""),
    details={
      "starter": record.values.get("starter_code") or "",
      "date": str(record.values.get("contest_date") or ""),
      "cases": cases(record, metadata.get("func_name") or ""),
    },
  )


def cases(record: Record, function: str) -> list[Case]:
  """The public and the private tests of a record.

  Args:
    record: with `public_test_cases` and `private_test_cases`.
    function: what tests of the kind "functional" call.
  """
  public = records.get(record, "public_test_cases", str)
  private = records.get(record, "private_test_cases", str)
  tests = [*_tests(record, public), *_tests(record, private)]
  return [
    Case(
      t["input"],
      t["output"],
      function if t.get("testtype") == "functional" else "",
    )
    for t in tests
  ]


class _TextOnly(pickle.Unpickler):
  """The hidden tests are a pickled text; anything else could run code."""

  def find_class(self, module, name):
    raise pickle.UnpicklingError(f"the tests name {module}.{name}")


def _tests(record: Record, text: str) -> list[dict]:
  """Tests as JSON; or that, pickled, compressed and in base64."""
  try:
    if not text.lstrip().startswith("["):
      packed = zlib.decompress(base64.b64decode(text))
      text = _TextOnly(io.BytesIO(packed)).load()
    return json.loads(text)
  except (ValueError, TypeError, binascii.Error, zlib.error, EOFError) as error:
    raise _unreadable(record, error) from error
  except pickle.UnpicklingError as error:
    raise _unreadable(record, error) from error


def _unreadable(record: Record, error: Exception) -> InputError:
  return InputError(
    f"{record.where}: cannot read its test cases ({error}); download it again"
  )


def prompt(item: Item) -> str:
  """The benchmark's own, as for models of no special format."""
  starter = item.details["starter"]
  return _PROMPT.format(
    question=item.question,
    form=_STARTER if starter else _STDIN,
    starter=starter or "# YOUR CODE HERE",
  )


def grade(response: str, item: Item) -> Verdict:
  """1 where the program passes all tests. Programs are not voted on."""
  program = code.program_of(response)
  if program is None:
    return Verdict(0.0, None)
  return Verdict(
    float(code.passes(program, item.details["cases"], LIMITS)), None
  )


LIVECODEBENCH = Benchmark(
  read,
  prompt,
  grade,
  multimodal.accuracy,
  "https://arxiv.org/abs/2403.07974",
  hub="livecodebench/code_generation_lite",
  files=("**/test*.jsonl",),
)
