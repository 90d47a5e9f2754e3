"""The token embedding and the head that is tied to it: one matrix, and its gradient made in one buffer.

The head is most of a small model's work and all of a large vocabulary's. Its cross-entropy goes through the tokens in
chunks and takes the gradient of each chunk at once, so that the [B, S, V] tensor of logits never exists: 0.8 GB for
four sequences of 512 and V = 100,277. The logits of a chunk stand as [V, C]: a matrix product that reads the whole head
for few tokens is half again as fast that way round.

The gradient that the head leaves is not handed to autograd as a second one beside the embedding's, which would be two
more tensors of the matrix's size: the embedding's backward adds its own rows to it and hands on the sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kssm.device import product_dtype

# Logits at a time: 16 MB lie in a CPU's last cache; an accelerator wants large products and 0.5 GB is little there.
_CHUNK_CPU = 2**22
_CHUNK_ACCELERATOR = 2**27
_CHUNK_TOKENS_MIN = 256  # a thinner product would leave the processor waiting for the weights


class TiedWeight:
    """The matrix in one pass of a model, first as embedding, then as head.

    Args:
        weight_VD: the embedding's weights.
    """

    def __init__(self, weight_VD: Tensor) -> None:
        self.weight_VD = weight_VD
        self._gradient_of_head: Tensor | None = None

    def lookup(self, tokens_X: Tensor) -> Tensor:
        """The rows of token ids, [..., D]."""
        rows: Tensor = _Lookup.apply(self.weight_VD, tokens_X, self)  # type: ignore[no-untyped-call]
        return rows

    def cross_entropy(self, hidden_MD: Tensor, target_M: Tensor) -> Tensor:
        """Mean cross-entropy of `softmax(W h)` against the targets; the matrix gets its gradient by way of `lookup`.

        Args:
            hidden_MD: hidden states [M, D] that were computed from this pass's `lookup`.
            target_M: token ids [M].

        Returns:
            A scalar, nats per token.
        """
        with_gradient = torch.is_grad_enabled()
        mean: Tensor = _CrossEntropy.apply(hidden_MD, self.weight_VD.detach(), target_M, self, with_gradient)  # type: ignore[no-untyped-call]
        return mean

    def leave(self, gradient_VD: Tensor) -> None:
        """The head's part of the gradient."""
        self._gradient_of_head = gradient_VD

    def take(self) -> Tensor:
        """The head's part of the gradient, to be changed by whoever takes it."""
        taken, self._gradient_of_head = self._gradient_of_head, None
        return torch.zeros_like(self.weight_VD) if taken is None else taken


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, tokens_X: Tensor, tied: TiedWeight) -> Tensor:
        ctx.save_for_backward(tokens_X)
        ctx.tied = tied
        return weight_VD[tokens_X]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_rows_XD: Tensor) -> tuple[Tensor, None, None]:
        """Runs after the head's backward, whose gradient flows through the rows to here."""
        (tokens_X,) = ctx.saved_tensors
        d_weight_VD: Tensor = ctx.tied.take()
        d_weight_VD.index_add_(0, tokens_X.flatten(), d_rows_XD.flatten(0, -2).to(d_weight_VD.dtype))
        return d_weight_VD, None, None


class _CrossEntropy(torch.autograd.Function):
    """Forward leaves the gradients of the mean behind; backward scales them by the incoming scalar."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, tied: TiedWeight, with_gradient: bool
    ) -> Tensor:
        M, V, dtype = len(hidden_MD), len(weight_VD), product_dtype(hidden_MD)
        chunk = _chunk_tokens(hidden_MD, V)
        d_hidden_MD = torch.empty_like(hidden_MD)
        d_weight_VD = torch.empty_like(weight_VD) if with_gradient else weight_VD.new_empty(0)
        weight, space = weight_VD.to(dtype), hidden_MD.new_empty(V * min(chunk, M), dtype=dtype)
        total = hidden_MD.new_zeros(())
        for start in range(0, M, chunk):
            part = slice(start, start + chunk)
            h_CD, target_1C = hidden_MD[part].to(dtype), target_M[None, part]
            logits_VC = torch.mm(weight, h_CD.T, out=space[: V * len(h_CD)].view(V, -1)).to(hidden_MD.dtype)
            loss, sum_C = _exponentials(logits_VC, target_1C)
            total += loss
            if with_gradient:
                logits_VC.scatter_add_(0, target_1C, -sum_C[None])
                # Now over the sum it is softmax minus one-hot: the thin matrices are divided, not the large one.
                scale_C1 = (1 / (M * sum_C))[:, None]
                error_VC = logits_VC.to(dtype)
                d_hidden_MD[part] = (error_VC.T @ weight) * scale_C1
                _add_product(d_weight_VD, error_VC, (h_CD * scale_C1).to(dtype), first=start == 0)
        ctx.tied = tied
        ctx.gradients = (d_hidden_MD, d_weight_VD)
        return total / M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mean: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were already taken: they are scaled in place, once")
        d_hidden_MD, d_weight_VD = ctx.gradients
        ctx.gradients = None
        ctx.tied.leave(d_weight_VD.mul_(d_mean))
        return d_hidden_MD.mul_(d_mean), None, None, None, None


def _exponentials(logits_VC: Tensor, target_1C: Tensor) -> tuple[Tensor, Tensor]:
    """Turns logits into their exponentials, in place; the summed loss, and the exponentials' sums [C]."""
    logits_VC -= logits_VC.amax(0)
    of_target_1C = logits_VC.gather(0, target_1C)
    # Exponentials that underflow are made thirty times slower, and these are as good as none.
    sum_C = logits_VC.clamp_(min=-87).exp_().sum(0)
    return (sum_C.log() - of_target_1C).sum(), sum_C


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """`total += left @ right`, or `=` at first; without a temporary of total's size where the types allow it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=0 if first else 1)
    elif first:
        total.copy_(left @ right)
    else:
        total += left @ right


def _chunk_tokens(hidden_MD: Tensor, V: int) -> int:
    budget = _CHUNK_CPU if hidden_MD.device.type == "cpu" else _CHUNK_ACCELERATOR
    return max(_CHUNK_TOKENS_MIN, budget // V)
