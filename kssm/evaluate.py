"""The loss of a model on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kssm.config import TrainConfig
from kssm.device import Compute
from kssm.errors import KssmError, Stopped
from kssm.language_model import LanguageModel, State
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
    *,
    carry_state: bool = False,
) -> Evaluation:
    """Evaluate without dropout and spread; v3 as published draws its spread from the same seed each time.

    Args:
        model: on the device of `compute`.
        batches: token ids [B, S + 1] each.
        compute: device and precision.
        config: the regulariser's weights.
        should_stop: asked before each batch.
        carry_state: each batch goes on where the one before left a model that remembers; all have the same B.

    Raises:
        Stopped: should_stop said so.
        KssmError: there was no batch.
    """
    return mean_of(model, list(measured(model, batches, compute, config, should_stop, carry_state=carry_state)))


class Measured(NamedTuple):
    """A batch, or several, in numbers: sums over its tokens.

    Args:
        tokens: how many were predicted.
        sums: of loss, ce, R, std of R, u, k; [6] on the device.
    """

    tokens: int
    sums: Tensor


def measured(
    model: LanguageModel,
    batches: Iterable[NDArray[np.integer]],
    compute: Compute,
    config: TrainConfig,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    carry_state: bool = False,
) -> Iterator[Measured]:
    """Each batch of an evaluation; as `evaluate`."""
    noise = model.evaluation_noise(config.seed)
    state: State | None = None
    for batch in batches:
        if should_stop():
            raise Stopped
        with torch.inference_mode(), compute.autocast():
            rows = torch.from_numpy(batch.astype(np.int64)).to(compute.device)  # [B, S + 1]
            count = rows.shape[0] * (rows.shape[1] - 1)
            numbers, left = _measurements(model, rows, noise, config, state)
        state = left if carry_state else None
        yield Measured(count, numbers * count)  # outside: a generator would leave its caller in inference mode


def mean_of(model: LanguageModel, parts: Sequence[Measured]) -> Evaluation:
    """The evaluation of batches together.

    Raises:
        KssmError: there was no batch.
    """
    tokens = sum(part.tokens for part in parts)
    if not tokens:
        raise KssmError("the evaluation has no batch", "use a longer text or a shorter --seq-length")
    loss, ce, order_parameter, std, u, coupling = (torch.stack([part.sums for part in parts]).sum(0) / tokens).tolist()
    return Evaluation(
        loss, ce, perplexity=math.exp(ce) if ce < 700 else math.inf, order_parameter=order_parameter,
        order_parameter_std=std, u=u if model.config.name == "v3" else None,
        coupling=coupling if model.config.name == "v4" else None, tokens=tokens,
    )  # fmt: skip


def _measurements(
    model: LanguageModel, rows: Tensor, noise: torch.Generator | None, config: TrainConfig, state: State | None
) -> tuple[Tensor, State | None]:
    """[loss, ce, R, std of R, u, k] of a batch, and where it left the model."""
    loss, ce, _, features = objective(model, rows, noise, config, state)
    u, k = (torch.zeros_like(ce) if of_L is None else of_L.mean() for of_L in (features.u_L, features.coupling_L))
    values = torch.stack((loss, ce, features.order_parameter_L.mean(), features.order_parameter_std, u, k))
    return values, features.state
