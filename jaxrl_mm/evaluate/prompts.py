"""What the model is asked, in the words of the papers."""

from jaxrl_mm.evaluate.items import Item

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Skywork R1V (https://arxiv.org/abs/2504.05599) prints these beginnings; they
# are InternVL's prompts, from which the parts it leaves out are taken.
_GUESS = (
  "If you are uncertain or the problem is too complex, make a reasoned guess "
  "based on the information provided. Avoid repeating steps indefinitely—"
  "provide your best guess even if unsure. Think step by step logically, "
  "considering all relevant information before answering."
)
_LETTER = (
  "Answer the preceding multiple choice question. The last line of your "
  "response should follow this format: 'Answer: \\boxed{$LETTER}' (without "
  f"quotes), where LETTER is one of the options. {_GUESS}"
)
_OPEN = (
  "Answer the preceding question. The last line of your response should follow "
  "this format: 'Answer: \\boxed{$FINAL_ANSWER}' (without quotes), where "
  "'FINAL_ANSWER' is your conclusion based on the reasoning provided. "
  f"{_GUESS}"
)


def with_options(item: Item) -> str:
  """The question, and below it its options behind their letters."""
  options = [f"{a}. {text}" for a, text in zip(LETTERS, item.choices)]
  return "\n".join([item.question, *options])


def reasoned(item: Item) -> str:
  """A question to be thought about, answered in a box; with its options."""
  lettered = item.choices or len(item.answer) == 1 and item.answer in LETTERS
  return f"{with_options(item)}\n{_LETTER if lettered else _OPEN}"


def yes_or_no(item: Item) -> str:
  """A question to be answered in one word, as POPE's evaluators ask it."""
  return f"{item.question} Please answer yes or no."


def bare(item: Item) -> str:
  """The question alone, for benchmarks that bring their own instructions."""
  return item.question
