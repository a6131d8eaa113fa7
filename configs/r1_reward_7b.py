"""R1-Reward-7B at its own size: a judge of two responses, on a v5p-32 slice.

  launch/tpu_pod.sh configs/r1_reward_7b.py --type v5p-32 ...
  python -m jaxrl_mm.main --config=configs/r1_reward_7b.py --workdir=DIR

`checkpoints/Qwen2.5-VL-7B-Instruct` is Qwen/Qwen2.5-VL-7B-Instruct as it is on
the hub. The data are JSON lines of pairs, `{"image", "question", "answer1",
"answer2", "choice"}`: `data/r1_reward_200k.jsonl` after the paper's table 2,
and VL-RewardBench as `data/vl_rewardbench.jsonl`. The 16 chips of the slice
hold weights and Adam in float32, 6.2 GB each.

The paper (https://arxiv.org/abs/2505.02835) and its released code disagree, and
both leave things out. What was chosen, and why:

  difficulty   GPT-4o, three tries at temperature 0, the paper's; it needs
               OPENAI_API_KEY. Tries at 0 differ only by chance; any model
               behind an OpenAI-compatible endpoint can take its place, and
               `--config.difficulty.teacher.base_url=` (empty) lets the model
               teach itself, at temperature 1.
  cold_start   Learning rate 1e-5, 256 an update and one epoch of 200,000 are
               the paper's. What was never solved has no trace and is left out.
  policy       5 epochs of the 17,261 hard questions that are published, 256 a
               rollout, are the 335 steps at which the paper's curves end. One
               sample a question is the code's, the paper is silent.
  updates      Two of 128 for each rollout of 256, on which both agree; the
               second is off-policy by one.
  rate         1e-6, the paper's; the code has 3e-7. Cosine to a tenth, warm-up
               of 3 % and a norm of 1 are the code's.
  advantages   |z| <= 3, the paper's. The code's window is shifted by the mean
               reward, so that from 68 % right answers on no wrong one counts.
  KL           None, the paper's; the code has 1e-3.
  reward       Result * (1 + 0.5 * consistency) + 0.5 * format, on which both
               agree. Consistency is asked of Qwen2.5-VL-7B-Instruct behind an
               endpoint, as in the paper; None takes a rule in its place.
  weights      All are trained: neither says that a part is frozen.
  pictures     At most 640 image tokens, the code's. The code's training passes
               leave the pictures out, which its upstream later called a bug;
               here they see them.
  lengths      1,024 tokens of answer, the code's. The code's limit of 20,480 of
               prompt would be padding nearly everywhere: 4,096 hold a picture
               and two long responses, and a longer pair is named as an error.
  micro_tokens A device takes up to eight rows at once, as many as fit into the
               room of four of the longest.
  evaluation   Both orders of each pair, and votes of up to 15 samples. The
               code shows the better response first, always.
"""

from jaxrl_mm.evaluate.judging import JudgingConfig
from jaxrl_mm.experiment import DataConfig, Experiment, MeshConfig, to_config
from jaxrl_mm.models import config as models
from jaxrl_mm.optimizer import OptimizerConfig
from jaxrl_mm.rewards.endpoint import Endpoint
from jaxrl_mm.train.difficulty import DifficultyConfig
from jaxrl_mm.train.loop import LoopConfig
from jaxrl_mm.train.policy import PolicyConfig
from jaxrl_mm.train.sft import SftConfig

QUESTIONS = 205_740  # 105,740 of MM-RLHF and 100,000 of four other sets
EPOCHS, HARD, ROLLOUT = 5, 17_261, 256


def get_config():
  """The experiment."""
  steps = EPOCHS * (HARD // ROLLOUT)
  return to_config(
    Experiment(
      model=models.qwen2_5_vl_7b(),
      pretrained="checkpoints/Qwen2.5-VL-7B-Instruct",
      stages=("difficulty", "cold_start", "policy"),
      mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
      data=DataConfig(
        prompts="data/r1_reward_200k.jsonl",
        prompt_tokens=4096,
        completion_tokens=1024,
        max_pixels=640 * 28 * 28,
      ),
      loop=LoopConfig(save_every=25),
      difficulty=DifficultyConfig(
        questions=QUESTIONS,
        attempts=3,
        teacher=Endpoint(
          "https://api.openai.com/v1", model="gpt-4o", temperature=0.0
        ),
      ),
      cold_start=SftConfig(
        steps=QUESTIONS // 256,
        batch=256,
        micro_batch=8,
        micro_tokens=4 * (4096 + 1024),
        optimizer=OptimizerConfig(learning_rate=1e-5),
      ),
      policy=PolicyConfig(
        steps=steps,
        prompts_per_step=ROLLOUT,
        samples_per_prompt=1,
        updates_per_rollout=2,
        micro_batch=8,
        micro_tokens=4 * (4096 + 1024),
        algorithm={"name": "stable_reinforce"},
        weights={"result": 1.0, "consistency": 0.5, "format": 0.5},
        optimizer=OptimizerConfig(
          learning_rate=1e-6,
          warmup_steps=round(0.03 * 2 * steps),
          schedule="cosine",
        ),
      ),
      consistency=Endpoint("http://localhost:8000/v1"),
      judging=JudgingConfig(
        source="data/vl_rewardbench.jsonl", pairs=1250, batch=64
      ),
    )
  )
