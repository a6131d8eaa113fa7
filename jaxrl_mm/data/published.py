"""Published data sets: one function a set, from a record as it was published
to what a stage trains on.

A function here says which layout it reads and raises `Flaw` where a record
has another; `sets` opens the files and decodes the pictures. Pictures always
come before the text, so the marks of their places are taken out of it.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from jaxrl_mm.data.comparisons import Pair
from jaxrl_mm.data.sources import Example
from jaxrl_mm.data.storage import Values

_MARK = re.compile(r"<image>[ \t]*\n?")
_Kind = TypeVar("_Kind")


class Flaw(ValueError):
  """What is wrong with a record, without its name."""


class Published(NamedTuple):
  """How a set is read.

  Attributes:
    read: a record; its pictures are still as `pictures.read` takes them.
    files: patterns of its files; the first that finds any counts.
    asks: the fields `leaves_out` needs.
    leaves_out: why a sound record is not used ("tie"), or nothing.
  """

  read: Callable[[Values], Pair | Example]
  files: tuple[str, ...]
  asks: tuple[str, ...] = ()
  leaves_out: Callable[[Values], str] | None = None


# ------------------------------------------------------------------ fields
def _get(values: Values, key: str, kind: type[_Kind]) -> _Kind:
  value = values.get(key)
  if not isinstance(value, kind):
    found = "missing" if value is None else f"a {type(value).__name__}"
    raise Flaw(f"'{key}' is {found} and has to be a {kind.__name__}")
  return value


def _text(values: Values, key: str) -> str:
  text = _get(values, key, str).strip()
  if not text:
    raise Flaw(f"'{key}' is empty")
  return text


def _answer(values: Values) -> str:
  """The truth; a number counts as its text."""
  value = values.get("answer")
  return (
    str(value) if isinstance(value, int | float) else _text(values, "answer")
  )


def _pictures(values: Values, *keys: str) -> tuple[Any, ...]:
  """What is in the first of these fields that there is: one, or a list."""
  value = next((values[k] for k in keys if values.get(k) is not None), [])
  return tuple(value) if isinstance(value, list) else (value,)


def _question(text: str, pictures: Sequence[Any]) -> str:
  """The text without the marks of places."""
  marks = text.count("<image>")
  if marks not in (0, len(pictures)):
    raise Flaw(
      f"the question has {marks} places for pictures and there are "
      f"{len(pictures)}"
    )
  bare = _MARK.sub("", text).strip()
  if not bare:
    raise Flaw("the question is empty")
  return bare


def _pair(question: str, pictures: Sequence[Any], better: str, worse: str):
  if better == worse:
    raise Flaw("both responses are the same")
  asked = _question(question, pictures)
  return Pair("", tuple(pictures), asked, better, worse)


def _example(question: str, pictures: Sequence[Any], answer: str) -> Example:
  return Example("", tuple(pictures), _question(question, pictures), answer)


def _turns(values: Values, key: str, who: str, what: str) -> list[tuple]:
  """(speaker, text) of each turn of a conversation."""
  turns = _get(values, key, list)
  if not all(isinstance(turn, dict) for turn in turns):
    raise Flaw(f"'{key}' is no list of turns")
  return [(turn.get(who), _text(turn, what)) for turn in turns]


def _exchange(turns: Sequence[tuple], key: str) -> tuple[str, str]:
  """The user's text and the response, of a conversation of these two."""
  if len(turns) != 2:
    raise Flaw(f"'{key}' has {len(turns)} turns and has to have 2")
  return turns[0][1], turns[1][1]


# ------------------------------------------------------- pairs of responses
def pairs(values: Values) -> Pair:
  """Our own layout: {"image" or "images", "question", "chosen", "rejected"}."""
  shown = _pictures(values, "images", "image", "file_name")
  texts = _text(values, "chosen"), _text(values, "rejected")
  return _pair(_text(values, "question"), shown, *texts)


_BLOCKS = re.compile(
  r"#+ \[Question\]:\s*(.*?)\s*#+ \[Response 1\]:\s*(.*?)\s*"
  r"#+ \[Response 2\]:\s*(.*?)\s*#+ \*\*Output Format",
  re.DOTALL,
)


def r1_reward_rl(values: Values) -> Pair:
  """R1-Reward-RL (https://arxiv.org/abs/2505.02835): parquet, {"question",
  "message", "answer", "image"}.

  `message` is JSON of one user turn whose text is the judge's whole prompt;
  the two responses are cut out of it. `answer` is ["<answer>2</answer>"],
  `image` is base64, or a path as in the message of the released example.
  """
  try:
    (turn,) = json.loads(_text(values, "message"))
    parts = {part["type"]: part for part in turn["content"]}
    prompt, shown = parts["text"]["text"], parts.get("image", {}).get("image")
  except (TypeError, LookupError, ValueError) as error:
    raise Flaw(f"'message' is no JSON of one user turn ({error!r})") from error
  blocks = _BLOCKS.search(prompt)
  if not blocks:
    raise Flaw("'message' does not hold two responses in R1-Reward's form")
  choices = _get(values, "answer", list)
  best = re.fullmatch(r"<answer>\s*([12])\s*</answer>", str((*choices, "")[0]))
  if len(choices) != 1 or not best:
    raise Flaw(f"'answer' is {choices} and has to name response 1 or 2")
  question, *texts = blocks.groups()
  shown = values.get("image") or shown
  order = texts if best[1] == "1" else texts[::-1]
  return _pair(question, [shown] if shown else [], *order)


def r1_reward_200k(values: Values) -> Pair:
  """R1-Reward-200k, as the paper describes its samples (section 4.2), for the
  files are not published: JSON lines, {"image", "question", "answer1",
  "answer2", "choice"}, choice 1 or 2.
  """
  texts = [_text(values, "answer1"), _text(values, "answer2")]
  choice = str(values.get("choice"))
  if choice not in ("1", "2"):
    raise Flaw(f"'choice' is {values.get('choice')!r} and has to be 1 or 2")
  order = texts if choice == "1" else texts[::-1]
  return _pair(_text(values, "question"), _pictures(values, "image"), *order)


def mm_rlhf(values: Values) -> Pair:
  """MM-RLHF (https://arxiv.org/abs/2502.10391): dpo_pairs.jsonl, {"image",
  "prompt", "chosen", "rejected"}; paths begin where long.zip, short.zip,
  mcq.zip and safety.zip are unpacked. Records of videos are left out, as
  R1-Reward does.
  """
  texts = _text(values, "chosen"), _text(values, "rejected")
  return _pair(_text(values, "prompt"), _pictures(values, "image"), *texts)


def _video(values: Values) -> str:
  return "video" if values.get("video") else ""


def rlaif_v(values: Values) -> Pair:
  """RLAIF-V (https://arxiv.org/abs/2405.17220): parquet, {"image": {"bytes",
  "path"}, "question", "chosen", "rejected", ...}."""
  texts = _text(values, "chosen"), _text(values, "rejected")
  return _pair(_text(values, "question"), _pictures(values, "image"), *texts)


_ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")


def vl_feedback(values: Values) -> Pair:
  """VL-Feedback (https://arxiv.org/abs/2312.10665): vlfeedback_80k.jsonl,
  {"id", "prompt", "completions": [{"annotations": {aspect: {"Rating",
  "Rationale"}}, "model", "response"}]}, or the parquet copy of it, whose
  completions are a record of lists. The picture is `image` or `img_path`, or
  merged_images/ID.jpg where there is neither. Ids repeat, so that of such a
  file some pictures are those of another record.

  Of the four responses, that with the best mean rating over the three aspects
  against that with the worst, the first where several are equal; where all
  are, the record is left out.
  """
  rated = _rated(values)
  better, worse = max(rated, key=lambda r: r[0]), min(rated, key=lambda r: r[0])
  shown = _pictures(values, "image", "img_path")
  shown = shown or (f"merged_images/{values.get('id')}.jpg",)
  return _pair(_text(values, "prompt"), shown, better[1], worse[1])


def _rated(values: Values) -> list[tuple[float, str]]:
  """Mean rating and text of each response."""
  completions = values.get("completions")
  if isinstance(completions, dict):
    rows = zip(completions["annotations"], completions["response"])
    completions = [{"annotations": a, "response": r} for a, r in rows]
  if not completions:
    raise Flaw("'completions' is empty")
  return [(_rating(c), _text(c, "response")) for c in completions]


def _rating(completion: Values) -> float:
  """Over the aspects that have a number; "N/A" is not one."""
  notes = _get(completion, "annotations", dict)
  given = [str((notes.get(a) or {}).get("Rating")) for a in _ASPECTS]
  numbers = [float(r) for r in given if re.fullmatch(r"\d+(\.\d+)?", r)]
  if not numbers:
    raise Flaw("a completion has no rating")
  return sum(numbers) / len(numbers)


def _equally_rated(values: Values) -> str:
  return "tie" if len({score for score, _ in _rated(values)}) == 1 else ""


def povid(values: Values) -> Pair:
  """POVID (https://arxiv.org/abs/2402.11411): one JSON list, {"id", "image",
  "conversations", "rejected_conversations"}, each of a turn "human" and a
  turn "gpt" in `value`. Pictures are those of COCO train2014, beside the
  file.
  """
  keys = ("conversations", "rejected_conversations")
  found = [_exchange(_turns(values, k, "from", "value"), k) for k in keys]
  (question, better), (_, worse) = found
  return _pair(question, _pictures(values, "image"), better, worse)


def wildvision_battle(values: Values) -> Pair:
  """WildVision-Battle (https://arxiv.org/abs/2406.11069): parquet, {"image",
  "conversation_a", "conversation_b", "winner", ...}, turns of `role` and
  `content`. Votes for neither and conversations of several turns are left
  out: nobody knows which of the answers the vote was about.
  """
  keys = ("conversation_a", "conversation_b")
  found = [_exchange(_turns(values, k, "role", "content"), k) for k in keys]
  if values.get("winner") not in ("model_a", "model_b"):
    raise Flaw(f"'winner' is {values.get('winner')!r}")
  texts = [answer for _, answer in found]
  order = texts if values["winner"] == "model_a" else texts[::-1]
  return _pair(found[0][0], _pictures(values, "image"), *order)


def _undecided(values: Values) -> str:
  if str(values.get("winner")).startswith(("tie", "bothbad")):
    return "tie"
  turns = values.get("conversation_a")
  return "several turns" if isinstance(turns, list) and len(turns) > 2 else ""


_TWO = re.compile(
  r"Question: \[(.*?)\]\s*(?:Response 1|Response A|The first response): "
  r"\[(.*?)\]\s*(?:Response 2|Response B|The second response): \[(.*)\]",
  re.DOTALL,
)
_BEST = re.compile(r"[Tt]he better response: \[?(\w+)")
_EQUAL = "equally good"
_ORDER = {"first": 0, "1": 0, "a": 0, "second": 1, "2": 1, "b": 1}


def llava_critic(values: Values) -> Pair:
  """LLaVA-Critic-113k (https://arxiv.org/abs/2410.02712), its 40,154 pairwise
  records: pairwise/*.parquet, {"id", "source", "image", "conversations"}, a
  turn "human" that quotes question and responses in brackets, and a turn
  "gpt" that says "The better response: [1]". "Equally good" is left out;
  the pointwise records rate one response and make no pair.
  """
  turns = _turns(values, "conversations", "from", "value")
  asked, verdict = _exchange(turns, "conversations")
  quoted, best = _TWO.search(asked), _BEST.search(verdict)
  if not quoted:
    raise Flaw("the first turn does not quote a question and two responses")
  if not best or best[1].lower() not in _ORDER:
    raise Flaw("the second turn does not say which response is better")
  question, *texts = (text.strip() for text in quoted.groups())
  order = texts[::-1] if _ORDER[best[1].lower()] else texts
  return _pair(question, _pictures(values, "image"), *order)


def _critic_tie(values: Values) -> str:
  turns = values.get("conversations") or []
  verdict = str(turns[-1].get("value")) if turns else ""
  return "tie" if _EQUAL in verdict and not _BEST.search(verdict) else ""


def skywork_preference(values: Values) -> Pair:
  """Skywork-Reward-Preference-80K-v0.2 (https://arxiv.org/abs/2410.18451):
  parquet, {"chosen", "rejected", "source"}, each a list of turns of `role`
  and `content`; text alone. Conversations of several turns are left out.
  """
  keys = ("chosen", "rejected")
  found = [_exchange(_turns(values, k, "role", "content"), k) for k in keys]
  (question, better), (_, worse) = found
  return _pair(question, [], better, worse)


def _several_turns(values: Values) -> str:
  turns = values.get("chosen")
  return "several turns" if isinstance(turns, list) and len(turns) > 2 else ""


def mmpr(values: Values) -> Pair:
  """MMPR (https://arxiv.org/abs/2411.10442), v1 to v1.2: meta.json with the
  `root` of the pictures and the `annotation` of each part; JSON lines,
  {"image": path or list, "question", "chosen", "rejected"}.
  """
  texts = _text(values, "chosen"), _text(values, "rejected")
  return _pair(_text(values, "question"), _pictures(values, "image"), *texts)


# --------------------------------------------- prompts that can be verified
def questions(values: Values) -> Example:
  """Our own layout: {"image", "images" or "file_name", "question", "answer"
  [, "demonstration", "facts"]}; a folder of pictures has a metadata.jsonl of
  such records.
  """
  shown = _pictures(values, "images", "image", "file_name")
  example = _example(_text(values, "question"), shown, _answer(values))
  more = {k: str(values.get(k) or "") for k in ("demonstration", "facts")}
  return example._replace(**more)


def geometry3k(values: Values) -> Example:
  """Geometry3K as prepared for reinforcement learning (hiyouga/geometry3k):
  parquet, {"images": [{"bytes", "path"}], "problem", "answer"}."""
  shown = _pictures(values, "images")
  return _example(_text(values, "problem"), shown, _answer(values))


_BOXED = re.compile(r"\\boxed\{(.*)\}", re.DOTALL)


def virl39k(values: Values) -> Example:
  r"""ViRL39K (https://arxiv.org/abs/2504.08837): 39Krelease.parquet,
  {"question", "answer", "image": [path], "category", "qid", ...}; answers are
  in \boxed{}, which is taken off. images.zip is unpacked beside the file.
  """
  answer = _answer(values)
  boxed = _BOXED.fullmatch(answer)
  answer = boxed[1].strip() if boxed else answer
  if not answer:
    raise Flaw("'answer' is empty")
  return _example(_text(values, "question"), _pictures(values, "image"), answer)


def mm_eureka(values: Values) -> Example:
  """MM-Eureka (https://arxiv.org/abs/2503.07365): JSON lines, {"id",
  "conversations": [{"role", "content"}], "answer", "image_urls": ["file://..."]
  }; the system turn is not used. Paths are those of the authors' machine: the
  folder holds the unpacked tree.
  """
  turns = _turns(values, "conversations", "role", "content")
  asked = [text for role, text in turns if role == "user"]
  if len(asked) != 1:
    raise Flaw(f"'conversations' has {len(asked)} user turns, not 1")
  return _example(asked[0], _pictures(values, "image_urls"), _answer(values))


def mmk12(values: Values) -> Example:
  """MMK12 (https://arxiv.org/abs/2503.07365): parquet, {"id", "question",
  "answer", "subject", "image": {"bytes", "path"}}."""
  shown = _pictures(values, "image")
  return _example(_text(values, "question"), shown, _answer(values))


_TRAIN = ("**/train-*.parquet", "**/*.parquet")
_LINES = ("**/*.jsonl", "**/*.json")
_ANY = ("*.array_record", "metadata.jsonl", "**/*.parquet", *_LINES)

PAIRS = {
  "pairs": Published(pairs, _ANY),
  "r1-reward-rl": Published(r1_reward_rl, (*_TRAIN, *_LINES)),
  "r1-reward-200k": Published(r1_reward_200k, _LINES),
  "mm-rlhf": Published(mm_rlhf, ("dpo_pairs.jsonl",), ("video",), _video),
  "rlaif-v": Published(rlaif_v, ("**/*.parquet",)),
  "vl-feedback": Published(
    vl_feedback,
    ("vlfeedback_80k.jsonl", *_TRAIN),
    ("completions",),
    _equally_rated,
  ),
  "povid": Published(povid, ("*.json",)),
  "wildvision-battle": Published(
    wildvision_battle, _TRAIN, ("winner", "conversation_a"), _undecided
  ),
  "llava-critic": Published(
    llava_critic,
    ("**/pairwise/*.parquet", "*.parquet"),
    ("conversations",),
    _critic_tie,
  ),
  "skywork-reward-preference": Published(
    skywork_preference, _TRAIN, ("chosen",), _several_turns
  ),
  "mmpr": Published(mmpr, ("meta.json", "**/*.jsonl")),
}

PROMPTS = {
  "questions": Published(questions, _ANY),
  "geometry3k": Published(geometry3k, _TRAIN),
  "virl39k": Published(virl39k, ("*.parquet",)),
  "mm-eureka": Published(mm_eureka, ("**/*.jsonl",)),
  "mmk12": Published(mmk12, _TRAIN),
}
