"""From a configuration to a model with its initial values."""

from __future__ import annotations

import torch

from kssm.config import ModelConfig
from kssm.language_model import LanguageModel
from kssm.model_v2 import KSSMv2
from kssm.model_v3 import KSSMv3
from kssm.model_v4 import KSSMv4


def build(config: ModelConfig, seed: int) -> LanguageModel:
    """A model on the CPU whose initial values follow from config and seed alone; no global random state changes."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every accelerator as well
        return {"v2": KSSMv2, "v3": KSSMv3, "v4": KSSMv4}[config.name](config)
