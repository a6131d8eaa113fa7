"""What one chip of a Cloud TPU slice can do, by its public data sheet
(https://cloud.google.com/tpu/docs/system-architecture-tpu-vm)."""

from typing import NamedTuple


class Chip(NamedTuple):
  """One chip.

  Attributes:
    memory: bytes of HBM that the compiler lets a program take.
    flops: bfloat16 operations a second.
    bandwidth: bytes a second from HBM.
    network: bytes a second between chips, all links together.
    name: of a slice as `gcloud` asks for it, without the size.
    cores: by which that size counts.
    slices: topologies from small to large.
  """

  memory: int
  flops: float
  bandwidth: float
  network: float
  name: str
  cores: int
  slices: tuple[str, ...]


GIB = 1 << 30
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CHIPS = {
  "v5e": Chip(int(15.75 * GIB), 197e12, 819e9, 200e9, "v5litepod", 1, _FLAT),
  "v6e": Chip(int(31.25 * GIB), 918e12, 1640e9, 448e9, "v6e", 1, _FLAT),
  "v5p": Chip(
    int(95.74 * GIB),
    459e12,
    2765e9,
    600e9,
    "v5p",
    2,
    (
      "2x2x1",
      "2x2x2",
      "2x2x4",
      "2x4x4",
      "4x4x4",
      "4x4x8",
      "4x8x8",
      "8x8x8",
      "8x8x16",
    ),
  ),
}
