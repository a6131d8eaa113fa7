"""All benchmarks by name."""

from pathlib import Path

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import (
  bfcl,
  digits,
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
  "bfcl": bfcl.BFCL,
  "livebench": livebench.LIVEBENCH,
  "livecodebench": livecodebench.LIVECODEBENCH,
  "hallusionbench": hallucination.HALLUSIONBENCH,
  "pope": hallucination.POPE,
  "vl_rewardbench": pairwise.VL_REWARDBENCH,
  "multimodal_rewardbench": pairwise.MULTIMODAL_REWARDBENCH,
  "mm_rlhf_rewardbench": pairwise.MM_RLHF_REWARDBENCH,
  "rewardbench": pairwise.REWARDBENCH,
  "digits": digits.DIGITS,
}


def find(name: str) -> Benchmark:
  """The benchmark of a name. Raises InputError where there is none."""
  if name not in BENCHMARKS:
    raise InputError(
      f"there is no benchmark '{name}'; known are {', '.join(BENCHMARKS)}"
    )
  return BENCHMARKS[name]


def check_folder(name: str, folder: Path | None) -> None:
  """Looks whether a benchmark's folder can be the downloaded one.

  Raises:
    InputError: a file is missing; names it, and where the folder comes from.
  """
  benchmark = find(name)
  for pattern in benchmark.files:
    if folder is None or next(folder.glob(pattern), None) is None:
      where = "there is no folder" if folder is None else f"{folder} has none"
      raise InputError(
        f"the benchmark '{name}' needs {pattern} and {where}; download "
        f"{benchmark.hub} and name its folder with --data"
      )
