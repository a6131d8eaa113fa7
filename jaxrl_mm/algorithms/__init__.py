"""Transforms over trajectories, and the named algorithms made of them.

A transform is an `optax.GradientTransformation` whose updates are
`Trajectories`: `init(trajectories) -> state`, `update(trajectories, state) ->
(trajectories, state)`. `optax.chain` joins them.
"""

from jaxrl_mm.algorithms.batch import center_by_batch as center_by_batch
from jaxrl_mm.algorithms.batch import clip_advantages as clip_advantages
from jaxrl_mm.algorithms.batch import filter_by_sigma as filter_by_sigma
from jaxrl_mm.algorithms.batch import scale_by_batch_std as scale_by_batch_std
from jaxrl_mm.algorithms.batch import whiten as whiten
from jaxrl_mm.algorithms.groups import center_by_group as center_by_group
from jaxrl_mm.algorithms.groups import leave_one_out as leave_one_out
from jaxrl_mm.algorithms.groups import (
  mask_uniform_groups as mask_uniform_groups,
)
from jaxrl_mm.algorithms.groups import scale_by_group_std as scale_by_group_std
from jaxrl_mm.algorithms.named import Algorithm as Algorithm
from jaxrl_mm.algorithms.named import cispo as cispo
from jaxrl_mm.algorithms.named import dapo as dapo
from jaxrl_mm.algorithms.named import dr_grpo as dr_grpo
from jaxrl_mm.algorithms.named import grpo as grpo
from jaxrl_mm.algorithms.named import gspo as gspo
from jaxrl_mm.algorithms.named import ppo as ppo
from jaxrl_mm.algorithms.named import r1v2 as r1v2
from jaxrl_mm.algorithms.named import reinforce as reinforce
from jaxrl_mm.algorithms.named import reinforce_plus_plus as reinforce_plus_plus
from jaxrl_mm.algorithms.named import (
  reinforce_plus_plus_baseline as reinforce_plus_plus_baseline,
)
from jaxrl_mm.algorithms.named import rloo as rloo
from jaxrl_mm.algorithms.named import stable_reinforce as stable_reinforce
from jaxrl_mm.algorithms.replay import ReplayState as ReplayState
from jaxrl_mm.algorithms.replay import effective_rows as effective_rows
from jaxrl_mm.algorithms.replay import (
  selective_sample_buffer as selective_sample_buffer,
)
from jaxrl_mm.algorithms.replay import (
  selective_sample_replay as selective_sample_replay,
)
from jaxrl_mm.algorithms.returns import discounted_returns as discounted_returns
from jaxrl_mm.algorithms.returns import gae as gae
from jaxrl_mm.algorithms.shaping import (
  advantages_from_rewards as advantages_from_rewards,
)
from jaxrl_mm.algorithms.shaping import clip_rewards as clip_rewards
from jaxrl_mm.algorithms.shaping import penalize_kl as penalize_kl
from jaxrl_mm.algorithms.shaping import shape_overlong as shape_overlong
from jaxrl_mm.algorithms.shaping import shuffle_rewards as shuffle_rewards
