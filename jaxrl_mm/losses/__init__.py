"""Losses over arrays: no model, no config, no state."""

from jaxrl_mm.losses import kl as kl
from jaxrl_mm.losses import policy as policy
from jaxrl_mm.losses import preference as preference
from jaxrl_mm.losses import reward_model as reward_model
from jaxrl_mm.losses import supervised as supervised
from jaxrl_mm.losses import value as value
