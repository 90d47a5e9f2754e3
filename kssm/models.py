"""From a configuration to a model with its initial values."""

from __future__ import annotations

import torch

from kssm.config import ModelConfig
from kssm.model_blocks import KSSM
from kssm.model_v2 import KSSMv2
from kssm.model_v3 import KSSMv3


def build(config: ModelConfig, seed: int) -> KSSM:
    """A model on the CPU whose initial values follow from config and seed alone; no global random state changes."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every accelerator as well
        return {"v2": KSSMv2, "v3": KSSMv3}[config.name](config)
