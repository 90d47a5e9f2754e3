"""What training minimises: the cross-entropy of the next token plus v3's regulariser."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kssm.config import TrainConfig
from kssm.language_model import Features, LanguageModel, State
from kssm.model_v3 import regulariser


class Objective(NamedTuple):
    """The loss of a batch and its parts.

    Args:
        loss: `ce + lambda_reg * reg`, a scalar with gradient.
        ce: mean cross-entropy of the next token, nats.
        reg: the regulariser before its weight lambda_reg; 0 where a model has none.
        features: what the model computed.
    """

    loss: Tensor
    ce: Tensor
    reg: Tensor
    features: Features


def objective(
    model: LanguageModel,
    rows_BT: Tensor,
    noise: torch.Generator | None,
    config: TrainConfig,
    state: State | None = None,
) -> Objective:
    """The loss of predicting each token of a row from those before it.

    Args:
        model: any.
        rows_BT: token ids [B, S + 1].
        noise: the model's noise; None evaluates without.
        config: the regulariser's weights.
        state: where an earlier text left a model that remembers.
    """
    features: Features = model(rows_BT[:, :-1], noise, state)
    ce = features.tied.cross_entropy(features.hidden_BSD.flatten(0, 1), rows_BT[:, 1:].flatten())
    reg = regulariser(features, config.lambda1, config.lambda2)
    return Objective(ce + config.lambda_reg * reg, ce, reg, features)
