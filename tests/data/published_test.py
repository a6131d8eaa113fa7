"""Records in the published layouts, as the data sets' cards describe them."""

import json

import pytest

from jaxrl_mm.data import comparisons, published
from jaxrl_mm.data.published import PAIRS, PROMPTS, Flaw

HUB = {"bytes": b"x", "path": "a.jpg"}
JUDGE = comparisons.R1_REWARD.format(
  question="What is it?", first="A cat.", second="A dog\n\nwith a tail."
)


def _message(prompt):
  parts = [
    {"type": "text", "text": prompt},
    {"type": "image", "image": "/mmu/cake.jpg"},
  ]
  return json.dumps([{"role": "user", "content": parts}])


def _turns(*texts, who="role", what="content", names=("user", "assistant")):
  return [{who: names[i % 2], what: text} for i, text in enumerate(texts)]


def _llava(*texts):
  return _turns(*texts, who="from", what="value", names=("human", "gpt"))


def _rated(*ratings):
  return [
    {
      "annotations": {
        "Helpfulness": {"Rating": str(rating), "Rationale": "so"},
        "Ethical Considerations": {"Rating": "5", "Rationale": "so"},
        "Visual Faithfulness": {"Rating": "N/A", "Rationale": "so"},
      },
      "model": f"m{i}",
      "response": f"response {i}",
    }
    for i, rating in enumerate(ratings)
  ]


def _critic(verdict, form="The {} response"):
  first, second = (
    (form.format(x) for x in ("first", "second"))
    if "{}" in form
    else form.split("|")
  )
  asked = (
    "<image>\nYou are a fair judge.\nQuestion: [What is [in] it?]\n"
    f"{first}: [A cat.]\n{second}: [A dog.]\nASSISTANT:\n"
  )
  return _llava(asked, verdict)


# set -> (record, question, pictures, better, worse)
GOOD_PAIRS = {
  "pairs": (
    {"image": "a.png", "question": "q", "chosen": "c", "rejected": "r"},
    ("q", ("a.png",), "c", "r"),
  ),
  "r1-reward-rl": (
    {
      "question": "What is it?",
      "message": _message(JUDGE),
      "answer": ["<answer>2</answer>"],
      "image": "/9j/abc",
    },
    ("What is it?", ("/9j/abc",), "A dog\n\nwith a tail.", "A cat."),
  ),
  "r1-reward-200k": (
    {
      "image": "a.png",
      "question": "q",
      "answer1": "one",
      "answer2": "two",
      "choice": 2,
    },
    ("q", ("a.png",), "two", "one"),
  ),
  "mm-rlhf": (
    {"image": "long/1.jpg", "prompt": "q", "chosen": "c", "rejected": "r"},
    ("q", ("long/1.jpg",), "c", "r"),
  ),
  "rlaif-v": (
    {
      "ds_name": "RLAIF-V",
      "image": HUB,
      "question": "q",
      "chosen": "c",
      "rejected": "r",
      "origin_dataset": "coco",
      "idx": "0",
      "image_path": "x",
    },
    ("q", (HUB,), "c", "r"),
  ),
  "vl-feedback": (
    {"id": "svit-1", "prompt": "q", "completions": _rated(3, 4, 2, 4)},
    ("q", ("merged_images/svit-1.jpg",), "response 1", "response 2"),
  ),
  "povid": (
    {
      "id": 1,
      "image": "train2014/1.jpg",
      "conversations": _llava("<image>\nq", "c"),
      "rejected_conversations": _llava("<image>\nq", "r"),
    },
    ("q", ("train2014/1.jpg",), "c", "r"),
  ),
  "wildvision-battle": (
    {
      "question_id": "1",
      "image": HUB,
      "conversation_a": _turns("q", "a"),
      "conversation_b": _turns("q", "b"),
      "winner": "model_b",
      "language": "English",
    },
    ("q", (HUB,), "b", "a"),
  ),
  "llava-critic": (
    {
      "id": "1",
      "source": "s",
      "image": HUB,
      "conversations": _critic("The better response: [second]. It is a dog."),
    },
    ("What is [in] it?", (HUB,), "A dog.", "A cat."),
  ),
  "skywork-reward-preference": (
    {
      "chosen": _turns("q", "c"),
      "rejected": _turns("q", "r"),
      "source": "magpie",
    },
    ("q", (), "c", "r"),
  ),
  "mmpr": (
    {
      "image": ["1.png", "2.png"],
      "question": "Image-1: <image>\nImage-2: <image>\nSame?",
      "chosen": "c",
      "rejected": "r",
    },
    ("Image-1: Image-2: Same?", ("1.png", "2.png"), "c", "r"),
  ),
}

GOOD_PROMPTS = {
  "questions": (
    {"file_name": "a.png", "question": "q", "answer": 3, "facts": "3"},
    ("q", ("a.png",), "3"),
  ),
  "geometry3k": (
    {"images": [HUB], "problem": "<image>Find x.", "answer": "3"},
    ("Find x.", (HUB,), "3"),
  ),
  "virl39k": (
    {
      "question": "<image>\nq",
      "answer": r"\boxed{\frac{1}{2}}",
      "image": ["images/a.png"],
      "category": "c",
      "qid": "1",
    },
    ("q", ("images/a.png",), r"\frac{1}{2}"),
  ),
  "mm-eureka": (
    {
      "id": "0",
      "conversations": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "<image>q"},
      ],
      "answer": "5",
      "image_urls": ["file:///a/b.png"],
    },
    ("q", ("file:///a/b.png",), "5"),
  ),
  "mmk12": (
    {
      "id": "1",
      "question": "<image>q",
      "answer": "A",
      "subject": "physics",
      "image": HUB,
    },
    ("q", (HUB,), "A"),
  ),
}


def test_every_set_has_its_example():
  assert set(GOOD_PAIRS) == set(PAIRS) and set(GOOD_PROMPTS) == set(PROMPTS)


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_read_as_published(name):
  values, expected = GOOD_PAIRS[name]
  pair = PAIRS[name].read(values)
  assert (pair.question, pair.pictures, pair.better, pair.worse) == expected


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_is_read_as_published(name):
  values, expected = GOOD_PROMPTS[name]
  example = PROMPTS[name].read(values)
  assert (example.question, example.pictures, example.answer) == expected


@pytest.mark.parametrize("name", [*PAIRS, *PROMPTS])
def test_a_record_without_one_of_its_fields_is_bad(name):
  """All but those that only describe it, or that may be missing."""
  spare = {"ds_name", "origin_dataset", "idx", "image_path", "question_id"}
  spare |= {"language", "source", "id", "category", "qid", "subject", "facts"}
  spare |= {"image", "images", "file_name", "image_urls"}
  spare |= {"question"} if name == "r1-reward-rl" else set()
  values, _ = (GOOD_PAIRS | GOOD_PROMPTS)[name]
  read = (PAIRS | PROMPTS)[name].read
  for key in values.keys() - spare:
    for wrong in (None, "", [], 7):
      if (key, wrong) == ("answer", 7) and name in PROMPTS:
        continue  # a number is an answer
      with pytest.raises((Flaw, TypeError)):
        read(values | {key: wrong})


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_of_equal_responses_is_bad(name):
  values = json.dumps(GOOD_PAIRS[name][0], default=lambda x: None)
  swaps = [("A dog\\\\n\\\\nwith a tail.", "A cat."), ("A dog.", "A cat.")]
  swaps += [('"two"', '"one"'), ('"r"', '"c"'), ('"b"', '"a"')]
  swaps += [(f"response {i}", "response 0") for i in range(4)]
  for old, new in swaps:
    values = values.replace(old, new)
  with pytest.raises(Flaw, match="same"):
    PAIRS[name].read(json.loads(values))


def test_the_places_of_pictures_must_be_as_many_as_these():
  read, values = PAIRS["mmpr"].read, GOOD_PAIRS["mmpr"][0]
  with pytest.raises(Flaw, match="2 places for pictures and there are 1"):
    read(values | {"image": "1.png"})
  lost = read(values | {"question": "no mark"})
  assert lost.question == "no mark" and len(lost.pictures) == 2
  with pytest.raises(Flaw, match="question is empty"):
    read(values | {"question": "<image>\n<image>"})


@pytest.mark.parametrize("answer", ["<answer>3</answer>", "2", "<answer>1"])
def test_r1_reward_names_response_1_or_2(answer):
  values = GOOD_PAIRS["r1-reward-rl"][0] | {"answer": [answer]}
  with pytest.raises(Flaw, match="has to name response 1 or 2"):
    published.r1_reward_rl(values)


def test_r1_reward_takes_the_path_of_its_message_without_an_image():
  values = GOOD_PAIRS["r1-reward-rl"][0] | {"image": None}
  assert published.r1_reward_rl(values).pictures == ("/mmu/cake.jpg",)


def test_vl_feedback_is_read_from_the_parquet_copy_too():
  values, expected = GOOD_PAIRS["vl-feedback"]
  rows = values["completions"]
  lists = {key: [row[key] for row in rows] for key in rows[0]}
  copy = values | {"completions": lists}
  pair = published.vl_feedback(copy)
  assert (pair.better, pair.worse) == expected[2:]
  for picture in ({"image": HUB}, {"img_path": HUB}):
    assert published.vl_feedback(copy | picture).pictures == (HUB,)


@pytest.mark.parametrize(
  "form", ["Response {}", "Response 1|Response 2", "Response A|Response B"]
)
def test_llava_critic_quotes_in_several_ways(form):
  form = "The {} response" if form == "Response {}" else form
  for verdict, better in [("[first]", "A cat."), ("[2]", "A dog.")]:
    turns = _critic(f"The better response: {verdict}", form)
    values = GOOD_PAIRS["llava-critic"][0] | {"conversations": turns}
    assert published.llava_critic(values).better == better


LEFT_OUT = [
  ("mm-rlhf", {"video": "video/1.mp4"}, "video"),
  ("vl-feedback", {"completions": _rated(3, 3)}, "tie"),
  ("wildvision-battle", {"winner": "tie (bothbad)"}, "tie"),
  ("wildvision-battle", {"winner": "bothbad_vote"}, "tie"),
  (
    "wildvision-battle",
    {"conversation_a": _turns("q", "a", "q", "a")},
    "several turns",
  ),
  (
    "llava-critic",
    {"conversations": _critic("Two responses are equally good.")},
    "tie",
  ),
  (
    "skywork-reward-preference",
    {"chosen": _turns("q", "a", "q", "a")},
    "several turns",
  ),
]


@pytest.mark.parametrize("name, change, reason", LEFT_OUT)
def test_sound_records_without_a_preference_are_left_out(name, change, reason):
  entry, values = PAIRS[name], GOOD_PAIRS[name][0]
  asked = lambda v: {key: v.get(key) for key in entry.asks}
  assert entry.leaves_out(asked(values)) == ""
  assert entry.leaves_out(asked(values | change)) == reason
