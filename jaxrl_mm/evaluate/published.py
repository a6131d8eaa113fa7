"""What papers report, in percent, to stand beside our numbers.

The names of the metrics are those of `Benchmark.metric` where a column is the
same thing; a column that is computed otherwise has a name of its own.
"""

_R1V2 = "https://arxiv.org/abs/2504.16656v3"
_R1_REWARD = "https://arxiv.org/abs/2505.02835v2"
_VL_REWARD = "https://arxiv.org/abs/2505.07263v2"


def _overall(**models: float) -> dict[str, dict[str, float]]:
  names = {
    "r1v2": "Skywork R1V2-38B",
    "r1v1": "Skywork R1V-38B",
    "internvl3": "InternVL3-38B",
    "qwen": "Qwen2.5-VL-72B",
    "qvq": "QvQ-72B",
    "claude": "Claude 3.5 Sonnet",
    "gemini": "Gemini 2.0 Flash",
    "kimi": "Kimi k1.5",
    "o1": "OpenAI o1",
    "o4": "OpenAI o4-mini",
    "deepseek": "DeepSeek R1",
  }
  return {names[key]: {"overall": value} for key, value in models.items()}


def _columns(names: str, rows: dict[str, str]) -> dict[str, dict[str, float]]:
  split = {model: map(float, values.split()) for model, values in rows.items()}
  return {model: dict(zip(names.split(), row)) for model, row in split.items()}


# Benchmark -> where the numbers are from, and model -> metric -> percent.
PUBLISHED: dict[str, tuple[str, dict[str, dict[str, float]]]] = {
  "mmmu": (
    _R1V2,
    _overall(
      r1v2=73.6,
      r1v1=68.0,
      internvl3=70.1,
      qwen=70.2,
      qvq=70.3,
      claude=70.4,
      gemini=70.7,
      kimi=70.0,
      o4=81.6,
    ),
  ),
  "mmmu_pro": (_R1V2, _overall(r1v2=52.0, qwen=51.1)),
  "mathvista": (
    _R1V2,
    _overall(
      r1v2=74.0,
      r1v1=67.0,
      internvl3=75.1,
      qwen=74.8,
      qvq=71.4,
      claude=67.7,
      gemini=73.1,
      kimi=74.9,
      o4=84.3,
    ),
  ),
  "mathvision": (
    _R1V2,
    _overall(
      r1v2=49.0,
      internvl3=34.2,
      qwen=38.1,
      qvq=35.9,
      gemini=41.3,
      kimi=53.3,
      o4=58.0,
    ),
  ),
  "olympiadbench": (_R1V2, _overall(r1v2=62.6, qwen=40.4, qvq=33.2)),
  # The model's card has o1 and DeepSeek R1 the other way round.
  "aime_2024": (
    _R1V2,
    _overall(r1v2=78.9, r1v1=72.0, o1=74.3, o4=93.4, deepseek=79.8),
  ),
  "livecodebench": (
    _R1V2,
    _overall(r1v2=63.6, r1v1=57.2, o1=63.4, o4=74.6, deepseek=65.9),
  ),
  "livebench": (
    _R1V2,
    _overall(r1v2=73.2, r1v1=54.6, o1=72.2, o4=78.1, deepseek=71.6),
  ),
  "ifeval": (_R1V2, _overall(r1v2=82.9, r1v1=72.5, deepseek=83.3)),
  # With 150 questions of the other languages, which are not asked here.
  "bfcl": (
    _R1V2,
    {
      "Skywork R1V2-38B": {"with Java, JavaScript": 66.3},
      "Skywork R1V-38B": {"with Java, JavaScript": 53.5},
      "DeepSeek R1": {"with Java, JavaScript": 60.3},
    },
  ),
  "gpqa": (
    "model card of Skywork R1V2",
    _overall(r1v2=61.6, claude=65.0, o4=49.9, deepseek=71.5),
  ),
  # No benchmark, judge or formula is given for these shares.
  "hallucination": (
    _R1V2,
    {
      "SFT": {"rate": 12.1},
      "MPO": {"rate": 8.7},
      "MPO+GRPO": {"rate": 9.1},
    },
  ),
  "vl_rewardbench": (
    f"{_R1_REWARD} and {_VL_REWARD}",
    {
      # Its script counts RLHF-V and RLAIF-V pairs as general ones.
      **_columns(
        "released-general released-hallucination reasoning overall "
        "released-macro",
        {
          "R1-Reward": "63.84 85.71 64.78 71.92 71.44",
          "R1-Reward voting@15": "66.32 89.06 73.70 76.46 76.36",
        },
      ),
      **_columns(
        "general hallucination reasoning overall macro",
        {
          "Skywork-VL Reward": "66.0 80.0 61.0 73.1 69.0",
          "IXC-2.5-Reward": "84.70 62.50 62.90 65.80 70.00",
          "MM-RLHF-Reward": "45.04 50.45 57.55 50.15 51.01",
          "InternVL3-78B": "67.8 52.5 64.5 63.3 61.6",
          "InternVL3-8B": "60.6 44.0 62.3 57.0 55.6",
          "Qwen2.5-VL-7B": "43.4 42.0 63.0 48.0 49.5",
          "Qwen2.5-VL-72B": "47.8 46.8 63.5 51.6 52.7",
          "Claude 3.7 Sonnet": "68.08 70.70 60.81 66.31 66.53",
          "Claude 3.5 Sonnet": "43.4 55.0 62.3 55.3 53.6",
          "Gemini 2.0 Flash": "50.8 72.6 70.1 68.8 64.5",
          "Gemini 1.5 Pro": "50.8 72.5 64.2 67.2 62.5",
          "GPT-4o": "49.10 67.60 70.50 65.80 62.40",
        },
      ),
    },
  ),
  # R1-Reward's "Safety" is the bias pairs alone; the other rows had the
  # withheld pairs too.
  "multimodal_rewardbench": (
    _R1_REWARD,
    {
      **_columns(
        "overall correctness preference knowledge reasoning/math "
        "reasoning/coding safety/bias vqa",
        {
          "R1-Reward": "82.2 77.5 74.0 74.9 83.1 79.6 99.6 86.5",
          "R1-Reward voting@15": "83.3 78.0 77.2 74.6 81.3 85.8 99.4 87.0",
        },
      ),
      **_columns(
        "with-withheld correctness preference knowledge reasoning/math "
        "reasoning/coding safety vqa",
        {
          "IXC-2.5-Reward": "66.6 60.7 64.2 56.8 63.0 50.5 89.9 81.1",
          "MM-RLHF-Reward": "67.1 61.7 67.5 54.3 58.4 57.9 92.9 76.8",
          "Claude 3.7 Sonnet": "71.9 58.4 60.7 78.1 76.3 71.3 72.0 86.8",
          "GPT-4o": "70.8 62.6 69.0 72.0 67.6 62.1 74.8 87.2",
        },
      ),
    },
  ),
  "mm_rlhf_rewardbench": (
    _R1_REWARD,
    {
      **_columns(
        "overall acc+ mcq long short safety video",
        {"R1-Reward": "80.59 54.35 80.95 89.19 82.35 75.0 72.0"},
      ),
      **_columns(
        "overall acc+ mcq long short safety video",
        {"R1-Reward voting@15": "86.47 67.39 83.33 97.30 91.18 78.12 80.0"},
      ),
      **_columns(
        "overall acc+",
        {
          "IXC-2.5-Reward": "71.18 50.00",
          "MM-RLHF-Reward": "82.00 63.00",
          "Claude 3.7 Sonnet": "82.35 65.22",
          "GPT-4o": "58.23 26.01",
        },
      ),
    },
  ),
  "rewardbench": (
    _VL_REWARD,
    _columns(
      "Chat Chat_Hard Safety Reasoning overall",
      {
        "Skywork-VL Reward": "90.0 87.5 91.1 91.8 90.1",
        "IXC-2.5-Reward": "90.8 83.8 87.8 90.0 88.1",
        "Qwen2.5-VL-7B": "94.3 63.8 84.1 86.2 82.1",
        "Skywork-Reward-Llama3.1-8B-v0.2": "94.7 88.4 92.7 96.7 93.1",
      },
    ),
  ),
}
