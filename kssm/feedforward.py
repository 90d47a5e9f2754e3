"""The feed-forward part of a block, D -> 4D -> D, with its own backward.

    W_2 GELU(W_1 x + b_1) + b_2        of the published models
    W_2 max(W_1 x, 0)^2                of v4: the squared ReLU of Primer (So et al. 2021)

Autograd would keep both sides of the GELU, [M, 4D] each and most of what a small model keeps. Here the left one is kept
and the right one is made again in backward, which costs one pass of ten; a frugal one makes the left one again as well,
which costs one of its six matrix products. On a CPU both passes go through the tokens in chunks, so that the GELU finds
its operands in the cache. The squared ReLU is three cheap passes in all, and keeps one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kssm.device import product_dtype

_CHUNK_CPU = 1024  # tokens


class FFN(nn.Module):
    """`W_2 GELU(W_1 x)` with biases, D -> 4D -> D.

    Args:
        D: width.
        frugal: keep nothing of width 4D for backward.
    """

    def __init__(self, D: int, *, frugal: bool = False) -> None:
        super().__init__()
        self.frugal = frugal
        self.expand = nn.Linear(D, 4 * D)
        self.contract = nn.Linear(4 * D, D)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        weights = self.expand.weight, self.expand.bias, self.contract.weight, self.contract.bias
        y_MD: Tensor = _FeedForward.apply(x_BSD.flatten(0, 1), *weights, self.frugal)  # type: ignore[no-untyped-call]
        return y_MD.view_as(x_BSD)


class _FeedForward(torch.autograd.Function):
    """Suffixes: M tokens, D hidden, E = 4D; W1 is [E, D], W2 [D, E], as torch's Linear keeps them."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor, frugal: bool) -> Tensor:
        dtype = product_dtype(x_MD)
        x_MD, W1, b1, W2, b2 = (tensor.to(dtype) for tensor in (x_MD, W1, b1, W2, b2))
        kept_ME = None if frugal else x_MD.new_empty(len(x_MD), len(W1))
        y_MD = torch.empty_like(x_MD)
        for part in _parts(x_MD):
            before = torch.addmm(b1, x_MD[part], W1.T, out=None if kept_ME is None else kept_ME[part])
            torch.addmm(b2, F.gelu(before), W2.T, out=y_MD[part])
        ctx.save_for_backward(x_MD, kept_ME, W1, b1, W2)
        return y_MD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_MD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None]:
        x_MD, kept_ME, W1, b1, W2 = ctx.saved_tensors
        d_x_MD, d_W1, d_W2 = torch.empty_like(x_MD), torch.zeros_like(W1), torch.zeros_like(W2)
        d_b1 = torch.zeros_like(b1)
        for part in _parts(x_MD):
            x, d_y = x_MD[part], d_y_MD[part]
            before = torch.addmm(b1, x, W1.T) if kept_ME is None else kept_ME[part]
            d_W2.addmm_(d_y.T, F.gelu(before))
            d_before = torch.ops.aten.gelu_backward(d_y @ W2, before)
            d_W1.addmm_(d_before.T, x)
            d_b1 += d_before.sum(0)
            torch.mm(d_before, W1, out=d_x_MD[part])
        return d_x_MD, d_W1, d_b1, d_W2, d_y_MD.sum(0), None


class SquaredFFN(nn.Module):
    """`W_2 max(W_1 x, 0)^2`, D -> 4D -> D, no biases.

    Args:
        D: width.
    """

    def __init__(self, D: int) -> None:
        super().__init__()
        self.expand = nn.Linear(D, 4 * D, bias=False)
        self.contract = nn.Linear(4 * D, D, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        weights = self.expand.weight, self.contract.weight
        y_MD: Tensor = _Squared.apply(x_BSD.flatten(0, 1), *weights)  # type: ignore[no-untyped-call]
        return y_MD.view_as(x_BSD)


class _Squared(torch.autograd.Function):
    """Suffixes as above; what is kept is max(W_1 x, 0), whose square has the derivative twice itself."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, W1: Tensor, W2: Tensor) -> Tensor:
        dtype = product_dtype(x_MD)
        x_MD, W1, W2 = (tensor.to(dtype) for tensor in (x_MD, W1, W2))
        kept_ME, y_MD = x_MD.new_empty(len(x_MD), len(W1)), torch.empty_like(x_MD)
        for part in _parts(x_MD):
            kept = torch.mm(x_MD[part], W1.T, out=kept_ME[part]).relu_()
            torch.mm(kept * kept, W2.T, out=y_MD[part])
        ctx.save_for_backward(x_MD, kept_ME, W1, W2)
        return y_MD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_MD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_MD, kept_ME, W1, W2 = ctx.saved_tensors
        d_x_MD, d_W1, d_W2 = torch.empty_like(x_MD), torch.zeros_like(W1), torch.zeros_like(W2)
        twice_W2 = 2 * W2
        for part in _parts(x_MD):
            x, d_y, kept = x_MD[part], d_y_MD[part], kept_ME[part]
            d_W2.addmm_(d_y.T, kept * kept)
            d_before = (d_y @ twice_W2).mul_(kept)
            d_W1.addmm_(d_before.T, x)
            torch.mm(d_before, W1, out=d_x_MD[part])
        return d_x_MD, d_W1, d_W2


def _parts(x_MD: Tensor) -> Iterator[slice]:
    M = len(x_MD)
    rows = _CHUNK_CPU if x_MD.device.type == "cpu" else max(M, 1)
    return (slice(first, first + rows) for first in range(0, M, rows))
