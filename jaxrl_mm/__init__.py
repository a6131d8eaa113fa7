"""Reinforcement-learning post-training of vision-language models in JAX."""

from jaxrl_mm import algorithms as algorithms
from jaxrl_mm import losses as losses
from jaxrl_mm import structs as structs

__version__ = "0.1.0"
