"""Difficulty: a teacher tries questions until it is right.

R1-Reward (https://arxiv.org/abs/2505.02835, section 4.3) asks GPT-4o up to
three times at temperature 0, where only the chance of its servers makes the
tries differ; here the temperature is 1. What follows from the labels is in
`data.difficulty`.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from jaxrl_mm import preemption, sharding
from jaxrl_mm.data import difficulty
from jaxrl_mm.data.difficulty import Label
from jaxrl_mm.data.sources import Example, Source
from jaxrl_mm.metrics import append_lines, write_text
from jaxrl_mm.models.vlm import Params
from jaxrl_mm.rewards.compose import Reward
from jaxrl_mm.rewards.endpoint import Endpoint
from jaxrl_mm.structs import Number
from jaxrl_mm.train.loop import Setting
from jaxrl_mm.train.sample import ask, make_sample

LABELS = "labels.jsonl"

# (questions, key of the draws) -> one completion each
Teacher = Callable[[Sequence[Example], jax.Array], list[str]]


@dataclasses.dataclass(frozen=True)
class DifficultyConfig:
  """What is asked of whom.

  Attributes:
    questions: how many of the source are labelled, from its first on.
    attempts: tries at most; the paper's 3.
    batch: questions asked at once.
    temperature: of a teacher of this process.
    fewest: attempts that make a question hard enough for the policy stage, see
      `data.difficulty.hard`; the paper's 2. 1 takes every question, better
      where the teacher is the policy itself: its errors are no fair sample.
    teacher: a model behind an endpoint, with a temperature of its own; without
      a `base_url` it is the model as the stages before have left it.
  """

  questions: int = 4096
  attempts: int = 3
  batch: int = 256
  temperature: Number = 1.0
  fewest: int = 2
  teacher: Endpoint = Endpoint(base_url="", temperature=1.0)


def run(
  setting: Setting,
  config: DifficultyConfig,
  params: Params,
  source: Source,
  right: Reward,
  folder: Path,
) -> list[Label]:
  """The labels, of which those that are missing are made.

  Args:
    setting: shared by all stages.
    config: of this one.
    params: of the model that is the teacher where no other is named.
    source: questions with answers.
    right: 1 for a right completion, else 0.
    folder: of the stage; `labels.jsonl` gets a line a question.
  """
  path = folder / LABELS
  size = min(config.questions, len(source))
  if len(difficulty.read_labels(path)) < size:
    teacher = (
      endpoint_teacher(config.teacher)
      if config.teacher.base_url
      else own_teacher(setting, config, params)
    )
    make_labels(teacher, config, source, right, path, seed=setting.seed)
    sharding.wait_for_all("difficulty")
  return difficulty.read_labels(path)


def make_labels(
  teacher: Teacher,
  config: DifficultyConfig,
  source: Source,
  right: Reward,
  path: Path,
  *,
  seed: int,
) -> None:
  """Appends the labels that `path` lacks, a batch at a time.

  A batch that a kill has cut short is asked again with the same keys, and the
  lines that are missing are added.

  Raises:
    Preempted: the machine will be taken away; the labels so far are kept.
  """
  size = min(config.questions, len(source))
  done = _resume(path)
  key = jax.random.key(seed)
  for start in range(done - done % config.batch, size, config.batch):
    preemption.check(f"difficulty has kept {max(done, start)} labels")
    numbers = range(start, min(start + config.batch, size))
    draws = jax.random.fold_in(key, start)
    labels = _try(teacher, source, right, numbers, config.attempts, draws)
    missing = labels[max(done - start, 0) :]
    append_lines(path, [label._asdict() for label in missing])
    _tell(numbers.stop, size)


def _resume(path: Path) -> int:
  """How many whole lines there are; what a kill has left of one is removed."""
  labels = difficulty.read_labels(path)
  if jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(label._asdict()) + "\n" for label in labels]
    write_text(path, "".join(lines))
  return int(sharding.of_first_process(str(len(labels))))


def _tell(done: int, size: int) -> None:
  if jax.process_index() == 0:
    print(f"  difficulty: {done} of {size} questions", flush=True)


def _try(
  teacher: Teacher,
  source: Source,
  right: Reward,
  numbers: Sequence[int],
  attempts: int,
  key: jax.Array,
) -> list[Label]:
  """Labels of some questions; those not yet solved are asked again."""
  examples = {n: source[n] for n in numbers}
  labels = {
    n: Label(n, example.name, example.answer, attempts, False, "")
    for n, example in examples.items()
  }
  for attempt in range(1, attempts + 1):
    left = [n for n in numbers if not labels[n].right]
    if not left:
      break
    asked = [examples[n] for n in left]
    completions = teacher(asked, jax.random.fold_in(key, attempt))
    scores = _grade(right, completions, [x.answer for x in asked])
    for n, completion, score in zip(left, completions, scores):
      if score:
        labels[n] = labels[n]._replace(
          attempts=attempt, right=True, trace=completion
        )
  return list(labels.values())


def _grade(
  right: Reward, completions: Sequence[str], answers: Sequence[str]
) -> list[float]:
  """By the first process: a time limit may tell one answer apart on several,
  which would then ask for different ones."""
  first = jax.process_index() == 0
  scores = right(completions, answers).tolist() if first else []
  return json.loads(sharding.of_first_process(json.dumps(scores)))


def own_teacher(
  setting: Setting, config: DifficultyConfig, params: Params
) -> Teacher:
  """The model of this process."""
  sample = make_sample(
    setting, samples_per_prompt=1, temperature=config.temperature
  )

  def teach(examples, key):
    texts, _ = ask(setting, sample, params, examples, key, batch=config.batch)
    return texts

  return teach


def endpoint_teacher(endpoint: Endpoint) -> Teacher:
  """A model behind an endpoint, which makes its own draws.

  The first process asks for all.
  """

  def teach(examples, key):
    del key
    questions = [example.question for example in examples]
    pictures = [example.pictures for example in examples]
    said = endpoint(questions, pictures) if jax.process_index() == 0 else []
    return json.loads(sharding.of_first_process(json.dumps(said)))

  return teach
