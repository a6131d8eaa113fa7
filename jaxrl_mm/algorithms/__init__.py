"""Transforms over trajectories, and the named algorithms made of them."""

from jaxrl_mm.algorithms.named import Algorithm as Algorithm
from jaxrl_mm.algorithms.named import grpo as grpo
from jaxrl_mm.algorithms.named import r1v2 as r1v2
from jaxrl_mm.algorithms.replay import ReplayState as ReplayState
from jaxrl_mm.algorithms.replay import effective_rows as effective_rows
from jaxrl_mm.algorithms.replay import (
  selective_sample_buffer as selective_sample_buffer,
)
from jaxrl_mm.algorithms.transforms import (
  advantages_from_rewards as advantages_from_rewards,
)
from jaxrl_mm.algorithms.transforms import center_by_group as center_by_group
from jaxrl_mm.algorithms.transforms import (
  scale_by_group_std as scale_by_group_std,
)
from jaxrl_mm.algorithms.transforms import shuffle_rewards as shuffle_rewards
