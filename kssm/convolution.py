"""Causal depthwise convolution: what a bank of oscillators sees is a token and the few before it."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_convolution(x_BSD: Tensor, weight_WD: Tensor, tail_BTD: Tensor) -> Tensor:
    """`y_t = sum_w weight_w x_{t - W + 1 + w}`, channel by channel.

    Args:
        x_BSD: inputs [B, S, D].
        weight_WD: one weight for each of W taps, the last for the present input.
        tail_BTD: the T = W - 1 inputs before.

    Returns:
        [B, S, D].
    """
    S, (*earlier, present) = x_BSD.shape[1], weight_WD.unbind(0)
    past_BXD = torch.cat((tail_BTD, x_BSD), 1)
    y_BSD = x_BSD * present
    for w, weight in enumerate(earlier):
        y_BSD = torch.addcmul(y_BSD, past_BXD[:, w : w + S], weight)
    return y_BSD
