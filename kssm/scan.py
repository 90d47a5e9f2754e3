"""The coupled scan: a bank of oscillators whose state runs through the sequence, as one operator with several makers.

For each oscillator j of a group g, from the inputs at position t (`_j`, `_g` left out where plain):

    a = sigmoid(decay + beta)                      what is kept of the state
    phi = omega + pi tanh(turn / pi)               how far it turns, radians
    k = sigmoid(coupling - 2)                      how far it is drawn to its group's mean field
    w = (1 - k) z_{t-1} + k mean_g z_{t-1}         a contraction for any k
    z_t = a e^{i phi} w + sqrt(1 - a^2 + 1e-6) b   b complex, the drive
    y_t = [Re z_t, Im z_t] * SiLU(gate)

Inputs of a token, in this order: Re b, Im b, decay, turn (N each), gate of Re, gate of Im (N each), coupling (G).
R of a state is |mean of z_j / |z_j|| of each group, mean over the groups: it is measured and goes nowhere.

Symbols as in `kssm.oscillators`; B sequences, S positions, N oscillators, G groups of n, P = 6N + G, F = 2N (real
parts, then imaginary ones). The makers agree to rounding, not bit for bit: a run says which one it uses, and a
checkpoint remembers it. Any maker's state after a prefix is where another scan goes on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kssm.makers import Makers
from kssm.scan_chunked import ChunkedScan
from kssm.scan_loop import LoopScan
from kssm.scan_maker import Scan, Scanned, ScanShape
from kssm.scan_native import NativeScan
from kssm.scan_trial import furthest_off

_MAKERS: Makers[Scan] = Makers(
    "--scan",
    {"chunked": ChunkedScan(), "loop": LoopScan()},  # of any float type too
    {"cpu": ("native", lambda: NativeScan(), lambda made: furthest_off(made, "cpu"))},
)
choose, chosen = _MAKERS.choose, _MAKERS.chosen


def coupled_scan(p_BSP: Tensor, beta_N: Tensor, omega_N: Tensor, start_BF: Tensor, shape: ScanShape) -> Scanned:
    """Scan a sequence, by whoever was chosen for the device.

    Args:
        p_BSP: inputs [B, S, P]; see above.
        beta_N: bias of the decays.
        omega_N: natural frequencies, radians per position.
        start_BF: the state before the first position.
        shape: of the bank.

    Returns:
        The gated states, with gradient; states, R and k without.
    """
    inputs = (tensor.contiguous() for tensor in (p_BSP, beta_N, omega_N, start_BF))
    return Scanned(*_CoupledScan.apply(*inputs, shape))  # type: ignore[no-untyped-call]


class _CoupledScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, p_BSP: Tensor, beta_N: Tensor, omega_N: Tensor, start_BF: Tensor, shape: ScanShape
    ) -> tuple[Tensor, ...]:
        inputs = p_BSP, beta_N, omega_N, start_BF
        single = all(tensor.dtype == torch.float32 for tensor in inputs)  # a kernel would read others as such
        ctx.scan = chosen(p_BSP.device.type) if single else _MAKERS.portable
        ctx.shape = shape
        found: Scanned = ctx.scan.forward(p_BSP, beta_N, omega_N, start_BF, shape)
        ctx.save_for_backward(p_BSP, beta_N, omega_N, start_BF, found.z_BSF)
        ctx.mark_non_differentiable(*found[1:])
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_BSF: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.scan.backward(*ctx.saved_tensors, d_y_BSF.contiguous(), ctx.shape)
        return (*found, None)
