"""Causal depthwise convolution: each channel of a token is a weighted sum of its last W values.

    y_{t,d} = sum_w weight_{w,d} x_{t-T+w,d},   T = W - 1, and x_{-T}..x_{-1} is the tail

Symbols: B sequences, S positions, D channels, W taps, the last one for the token itself. The taps are added in one
order wherever a sequence begins, so going on from a tail gives the very bits of going through at once. In C where the
library is and the numbers are float32 on the CPU, else in plain torch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kssm import native
from kssm.trial import Unavailable, first_off, tried

_OFF = 1e-5  # of the largest


def causal_convolution(x_BSD: Tensor, weight_WD: Tensor, tail_BTD: Tensor) -> Tensor:
    """Convolve sequences with what came before them.

    Args:
        x_BSD: inputs.
        weight_WD: taps of each channel, the last one for the present token.
        tail_BTD: the T = W - 1 inputs before the first; zeros, where there were none. No gradient goes there.

    Returns:
        The outputs, [B, S, D].
    """
    inputs = (tensor.contiguous() for tensor in (x_BSD, weight_WD, tail_BTD))
    found: Tensor = _CausalConvolution.apply(*inputs)  # type: ignore[no-untyped-call]
    return found


class PortableConvolution:
    """In plain torch: any device, any floating type. Products and sums are rounded apart, so no bit depends on how
    a device groups them."""

    def forward(self, x_BSD: Tensor, weight_WD: Tensor, tail_BTD: Tensor) -> Tensor:
        """See `causal_convolution`."""
        S, seen = x_BSD.shape[1], torch.cat((tail_BTD, x_BSD), 1)
        y_BSD = seen[:, :S] * weight_WD[0]
        for w in range(1, len(weight_WD)):
            y_BSD += seen[:, w : w + S] * weight_WD[w]
        return y_BSD

    def backward(self, x_BSD: Tensor, weight_WD: Tensor, tail_BTD: Tensor, d_y_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """The loss' gradients by inputs and taps, from the one by outputs."""
        S, T, seen = x_BSD.shape[1], len(weight_WD) - 1, torch.cat((tail_BTD, x_BSD), 1)
        d_x_BSD = d_y_BSD * weight_WD[T]
        for w in range(max(0, T - S), T):  # earlier taps of these tokens are beyond the sequence's end
            d_x_BSD[:, : S - T + w] += d_y_BSD[:, T - w :] * weight_WD[w]
        d_weight = [torch.einsum("bsd,bsd->d", d_y_BSD, seen[:, w : w + S]) for w in range(T + 1)]
        return d_x_BSD, torch.stack(d_weight)


class NativeConvolution:
    """In C: contiguous float32 on the CPU only (`kssm/native/convolution.c`).

    Args:
        form: see `kssm.native.name_of_form`.

    Raises:
        Unavailable: the library cannot be used here.
    """

    def __init__(self, form: int = 0) -> None:
        self._library, self._form = native.opened(), form
        self.name = native.name_of_form(self._library, form)

    def forward(self, x_BSD: Tensor, weight_WD: Tensor, tail_BTD: Tensor) -> Tensor:
        """See `causal_convolution`."""
        y_BSD = torch.empty_like(x_BSD)
        self._call("kssm_convolution_forward", (x_BSD, weight_WD, tail_BTD, y_BSD))
        return y_BSD

    def backward(self, x_BSD: Tensor, weight_WD: Tensor, tail_BTD: Tensor, d_y_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """See `PortableConvolution.backward`."""
        found = torch.empty_like(x_BSD), torch.empty_like(weight_WD)
        self._call("kssm_convolution_backward", (x_BSD, weight_WD, tail_BTD, d_y_BSD, *found))
        return found

    def _call(self, function: str, tensors: tuple[Tensor, ...]) -> None:
        sizes = (*tensors[0].shape, len(tensors[1]))
        failed = getattr(self._library, function)(
            *native.addresses(tensors), *sizes, torch.get_num_threads(), self._form
        )
        native.require_memory(failed, "the convolution's sums over sequences")


_PORTABLE = PortableConvolution()


@cache
def _on_cpu() -> NativeConvolution | PortableConvolution:
    """The one for float32 on the CPU. That the library is not there is the scan's to tell; see `kssm.scan.choose`."""
    try:
        return tried("native", NativeConvolution, _furthest_off)
    except Unavailable:
        return _PORTABLE


def _furthest_off(made: NativeConvolution) -> str:
    draw = torch.Generator().manual_seed(0)
    x, weight, tail, d_y = (torch.randn(size, generator=draw) for size in ((2, 5, 19), (4, 19), (2, 3, 19), (2, 5, 19)))
    got = (made.forward(x, weight, tail), *made.backward(x, weight, tail, d_y))
    x, weight, tail, d_y = (tensor.double() for tensor in (x, weight, tail, d_y))
    right = (_PORTABLE.forward(x, weight, tail), *_PORTABLE.backward(x, weight, tail, d_y))
    return first_off(zip(("outputs", "d_x", "d_weight"), got, right, strict=True), _OFF)


class _CausalConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BSD: Tensor, weight_WD: Tensor, tail_BTD: Tensor) -> Tensor:
        native_one = x_BSD.device.type == "cpu" and x_BSD.dtype == weight_WD.dtype == tail_BTD.dtype == torch.float32
        ctx.made = _on_cpu() if native_one else _PORTABLE
        ctx.save_for_backward(x_BSD, weight_WD, tail_BTD)
        found: Tensor = ctx.made.forward(x_BSD, weight_WD, tail_BTD)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_BSD: Tensor) -> tuple[Tensor, Tensor, None]:
        return (*ctx.made.backward(*ctx.saved_tensors, d_y_BSD.contiguous()), None)
