"""The readout of a bank of oscillators: the order parameters of H harmonics as one operator with several makers.

    Z_n = (1/N) sum_j exp(i n theta_j),    readings = [Re Z_1..Re Z_H, Im Z_1..Im Z_H, |Z_1|..|Z_H|],

|Z| = sqrt(Re^2 + Im^2 + 1e-8). Forward multiplies by z = e^{i theta} once a harmonic. Backward, with
g_n = dL/d Re Z_n - i dL/d Im Z_n, needs dL/dtheta_j = -(1/N) Im sum_n n g_n z_j^n, a polynomial in z_j, and
evaluates it by Horner's rule. No tensor of the size [M, N, H] exists in either; only theta and the readings are kept
between them.

Symbols as in `kssm.oscillators`; M counts tokens. The makers agree with each other to rounding, not bit for bit: a run
says which one it uses, and a checkpoint remembers it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kssm.makers import Makers
from kssm.readout_maker import Readout, furthest_off
from kssm.readout_metal import MetalReadout
from kssm.readout_native import NativeReadout
from kssm.readout_portable import PortableReadout
from kssm.trial import Unavailable


def _triton() -> Readout:
    try:
        from kssm.readout_triton import TritonReadout  # torch's builds for CUDA bring triton, others do not
    except ImportError as error:
        raise Unavailable(f"the triton kernel needs triton ({error})") from None
    return TritonReadout()


_MAKERS: Makers[Readout] = Makers(
    "--readout",
    {"portable": PortableReadout()},
    {
        "cpu": ("native", lambda: NativeReadout(), lambda made: furthest_off(made, "cpu")),
        "cuda": ("triton", _triton, lambda made: furthest_off(made, "cuda")),
        "mps": ("metal", lambda: MetalReadout(), lambda made: furthest_off(made, "mps")),
    },
)
choose, chosen = _MAKERS.choose, _MAKERS.chosen


def order_parameters(theta_XN: Tensor, H: int) -> Tensor:
    """The readings [..., 3H] of phases [..., N], H 1 or more; by whoever was chosen for the device."""
    theta_MN = theta_XN.reshape(-1, theta_XN.shape[-1]).contiguous()
    readings_MF: Tensor = _OrderParameters.apply(theta_MN, H)  # type: ignore[no-untyped-call]
    return readings_MF.view(*theta_XN.shape[:-1], 3 * H)


class _OrderParameters(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta_MN: Tensor, H: int) -> Tensor:
        ctx.readout = chosen(theta_MN.device.type) if theta_MN.dtype == torch.float32 else _MAKERS.portable
        readings_MF: Tensor = ctx.readout.forward(theta_MN, H)
        ctx.save_for_backward(theta_MN, readings_MF)
        return readings_MF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_readings_MF: Tensor) -> tuple[Tensor, None]:
        theta_MN, readings_MF = ctx.saved_tensors
        return ctx.readout.backward(theta_MN, readings_MF, d_readings_MF.contiguous()), None
