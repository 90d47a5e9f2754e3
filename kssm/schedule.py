"""The learning rate of each step."""

from __future__ import annotations

import math

from kssm.config import TrainConfig


def lr_at(step: int, config: TrainConfig) -> float:
    """Linear warm-up to `config.lr`, then a cosine to 0 at `config.max_steps`.

    Departure from the published v2: its first step had a rate of 0 and trained nothing.

    Args:
        step: counts from 0.
        config: peak rate, warm-up and length of the run.

    Returns:
        The rate, above 0 at every step of the run.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if step >= config.max_steps:
        return 0.0
    done = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))
