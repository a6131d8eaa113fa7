"""All benchmarks by name."""

from jaxrl_mm.evaluate import (
  hallucination,
  livebench,
  livecodebench,
  multimodal,
  pairwise,
  text,
)
from jaxrl_mm.evaluate.items import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
  "mmmu": multimodal.MMMU,
  "mmmu_pro": multimodal.MMMU_PRO,
  "mathvista": multimodal.MATHVISTA,
  "mathvision": multimodal.MATHVISION,
  "olympiadbench": multimodal.OLYMPIADBENCH,
  "aime_2024": text.AIME_2024,
  "gpqa": text.GPQA,
  "ifeval": text.IFEVAL,
  "bfcl": text.BFCL,
  "livebench": livebench.LIVEBENCH,
  "livecodebench": livecodebench.LIVECODEBENCH,
  "hallusionbench": hallucination.HALLUSIONBENCH,
  "pope": hallucination.POPE,
  "vl_rewardbench": pairwise.VL_REWARDBENCH,
  "multimodal_rewardbench": pairwise.MULTIMODAL_REWARDBENCH,
  "mm_rlhf_rewardbench": pairwise.MM_RLHF_REWARDBENCH,
  "rewardbench": pairwise.REWARDBENCH,
}
