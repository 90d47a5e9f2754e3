"""What training minimises: the cross-entropy of the next token plus v3's regulariser.

The head is most of a small model's work. Its cross-entropy therefore goes through the tokens in chunks that stay in
the cache and takes the gradient of each chunk at once: on a CPU half the time of logits for the whole batch, and the
[B, S, V] tensor, 1.6 GB for eight sequences of 512 and V = 100,277, never exists.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kssm.config import TrainConfig
from kssm.model_blocks import KSSM, Features
from kssm.model_v3 import regulariser

# Logits at a time: 4 MB lie in a CPU's cache; an accelerator wants large products and 0.5 GB is little there.
_CHUNK_CPU = 2**20
_CHUNK_ACCELERATOR = 2**27
_CHUNK_TOKENS_MIN = 64  # a thinner product would leave the processor waiting for the weights


class Objective(NamedTuple):
    """The loss of a batch and its parts.

    Args:
        loss: `ce + lambda_reg * reg`, a scalar with gradient.
        ce: mean cross-entropy of the next token, nats.
        reg: the regulariser before its weight lambda_reg; 0 for v2.
        features: what the model computed.
    """

    loss: Tensor
    ce: Tensor
    reg: Tensor
    features: Features


def objective(model: KSSM, rows_BT: Tensor, noise: torch.Generator | None, config: TrainConfig) -> Objective:
    """The loss of predicting each token of a row from those before it.

    Args:
        model: v2 or v3.
        rows_BT: token ids [B, S + 1].
        noise: the model's noise; None evaluates without.
        config: the regulariser's weights.
    """
    features: Features = model(rows_BT[:, :-1], noise)
    ce = tied_cross_entropy(features.hidden_BSD.flatten(0, 1), model.embedding.weight, rows_BT[:, 1:].flatten())
    reg = regulariser(features, config.lambda1, config.lambda2)
    return Objective(ce + config.lambda_reg * reg, ce, reg, features)


def tied_cross_entropy(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor) -> Tensor:
    """Mean cross-entropy of `softmax(W h)` against the targets, without the logits of all M tokens at once.

    Args:
        hidden_MD: hidden states [M, D].
        weight_VD: the head [V, D].
        target_M: token ids [M].

    Returns:
        A scalar, nats per token.
    """
    with_gradient = torch.is_grad_enabled()
    mean: Tensor = _TiedCrossEntropy.apply(hidden_MD, weight_VD, target_M, with_gradient)  # type: ignore[no-untyped-call]
    return mean


def _chunk_tokens(hidden_MD: Tensor, V: int) -> int:
    budget = _CHUNK_CPU if hidden_MD.device.type == "cpu" else _CHUNK_ACCELERATOR
    return max(_CHUNK_TOKENS_MIN, budget // V)


def _product_dtype(tensor: Tensor) -> torch.dtype:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, without a temporary of total's size where the types allow it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


class _TiedCrossEntropy(torch.autograd.Function):
    """Forward leaves the gradients of the mean behind; backward scales them by the incoming scalar."""

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, with_gradient: bool) -> Tensor:
        M, V = len(hidden_MD), len(weight_VD)
        d_hidden_MD, d_weight_VD = torch.empty_like(hidden_MD), torch.zeros_like(weight_VD)
        total = hidden_MD.new_zeros(())
        chunk, dtype = _chunk_tokens(hidden_MD, V), _product_dtype(hidden_MD)
        weight = weight_VD.to(dtype)
        for start in range(0, M, chunk):
            part = slice(start, start + chunk)
            h_CD, target_C1 = hidden_MD[part].to(dtype), target_M[part, None]
            logits_CV = (h_CD @ weight.T).to(hidden_MD.dtype)
            logits_CV -= logits_CV.amax(-1, keepdim=True)
            of_target_C1 = logits_CV.gather(1, target_C1)
            weights_CV = logits_CV.exp_()
            sum_C1 = weights_CV.sum(-1, keepdim=True)
            total += (sum_C1.log() - of_target_C1).sum()
            if with_gradient:
                error_CV = weights_CV.div_(sum_C1)  # softmax minus one-hot
                error_CV.scatter_add_(1, target_C1, error_CV.new_full((1, 1), -1.0).expand_as(target_C1))
                error_CV = error_CV.to(dtype)
                d_hidden_MD[part] = error_CV @ weight
                _add_product(d_weight_VD, error_CV.T, h_CD)
        ctx.save_for_backward(d_hidden_MD, d_weight_VD)
        return total / M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mean: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden_MD, d_weight_VD = ctx.saved_tensors
        scale = d_mean / len(d_hidden_MD)
        return d_hidden_MD * scale, d_weight_VD * scale, None, None
