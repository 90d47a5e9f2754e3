"""The loss of a model on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kssm.config import TrainConfig
from kssm.device import Compute
from kssm.errors import KssmError, Stopped
from kssm.language_model import LanguageModel
from kssm.objective import objective


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over the tokens of an evaluation.

    Args:
        loss: `ce + lambda_reg * reg`.
        ce: cross-entropy, nats per token.
        perplexity: exp(ce), infinite where that overflows.
        order_parameter: R, mean over tokens and layers.
        order_parameter_std: its standard deviation over the tokens of a batch.
        u: mean u; v3 alone has it.
        coupling: mean k; v4 alone has it.
        tokens: how many tokens were predicted.
    """

    loss: float
    ce: float
    perplexity: float
    order_parameter: float
    order_parameter_std: float
    u: float | None
    coupling: float | None
    tokens: int


def evaluate(
    model: LanguageModel,
    batches: Iterable[NDArray[np.integer]],
    compute: Compute,
    config: TrainConfig,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Evaluate without dropout and spread; v3 as published draws its spread from the same seed each time.

    Args:
        model: on the device of `compute`.
        batches: token ids [B, S + 1] each.
        compute: device and precision.
        config: the regulariser's weights.
        should_stop: asked before each batch.

    Raises:
        Stopped: should_stop said so.
        KssmError: there was no batch.
    """
    noise = model.evaluation_noise(config.seed)
    sums: list[Tensor] = []
    tokens = 0
    with torch.inference_mode(), compute.autocast():
        for batch in batches:
            if should_stop():
                raise Stopped
            rows = torch.from_numpy(batch.astype(np.int64)).to(compute.device)  # [B, S + 1]
            count = rows.shape[0] * (rows.shape[1] - 1)
            sums.append(_measurements(model, rows, noise, config) * count)
            tokens += count
    if not tokens:
        raise KssmError("the evaluation has no batch", "use a longer text or a shorter --seq-length")
    loss, ce, order_parameter, std, u, coupling = (torch.stack(sums).sum(0) / tokens).tolist()
    return Evaluation(
        loss, ce, perplexity=math.exp(ce) if ce < 700 else math.inf, order_parameter=order_parameter,
        order_parameter_std=std, u=u if model.config.name == "v3" else None,
        coupling=coupling if model.config.name == "v4" else None, tokens=tokens,
    )  # fmt: skip


def _measurements(model: LanguageModel, rows: Tensor, noise: torch.Generator | None, config: TrainConfig) -> Tensor:
    """[loss, ce, R, std of R, u, k] of a batch."""
    loss, ce, _, features = objective(model, rows, noise, config)
    u, k = (torch.zeros_like(ce) if of_L is None else of_L.mean() for of_L in (features.u_L, features.coupling_L))
    return torch.stack((loss, ce, features.order_parameter_L.mean(), features.order_parameter_std, u, k))
