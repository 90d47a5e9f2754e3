"""How far a maker of the coupled scan is from its definition on the machine at hand; see `kssm.trial`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kssm.scan_loop import LoopScan
from kssm.scan_maker import Gradients, Scan, Scanned, ScanShape
from kssm.trial import first_off

_OFF = 1e-5  # of the largest
_SHAPES = (ScanShape(32, 16), ScanShape(15, 5))  # whole vectors, and groups that are none


def furthest_off(made: Scan, device: str) -> str:
    """What of a maker's outcome for small inputs is too far from the definition in float64; nothing, if it is right.

    Args:
        made: the maker.
        device: type of the device that it is for.
    """
    return next(filter(None, (_off_for(made, device, shape) for shape in _SHAPES)), "")


def _off_for(made: Scan, device: str, shape: ScanShape) -> str:
    inputs, d_y_BSF = _inputs(shape)
    found, gradients = _through(made, [tensor.to(device) for tensor in inputs], d_y_BSF.to(device), shape)
    truth, d_truth = _through(LoopScan(), [tensor.double() for tensor in inputs], d_y_BSF.double(), shape)
    d_names = (f"d_{name}" for name in Gradients._fields)
    off = first_off(zip(Scanned._fields, found, truth, strict=True), _OFF)
    if off := off or first_off(zip(d_names, gradients, d_truth, strict=True), _OFF):
        return off
    inputs[0][1, 3, 2] = math.nan  # one sequence's; the other one must not notice
    spoilt, _ = _through(made, [tensor.to(device) for tensor in inputs], d_y_BSF.to(device), shape)
    if not spoilt.z_BSF[1, 3:, 2].isnan().all():
        return "an input that is no number goes unnoticed"
    return "" if spoilt.y_BSF[0].isfinite().all() else "an input that is no number spoils other sequences"


def _inputs(shape: ScanShape) -> tuple[list[Tensor], Tensor]:
    """Two sequences of a few positions, and a gradient by what is read of them; so little that no thread is started."""
    draw = torch.Generator().manual_seed(0)
    B, S, N = 2, 6, shape.oscillators
    p_BSP = torch.randn(B, S, shape.width, generator=draw)
    beta_N, omega_N = torch.linspace(-1, 9, N), torch.linspace(-3, 40, N)
    start_BF, d_y_BSF = torch.randn(B, 2 * N, generator=draw), torch.randn(B, S, 2 * N, generator=draw)
    p_BSP[0, 2, 2 * N : 3 * N] = 200.0  # far beyond where an exponential overflows
    p_BSP[0, 3, 4 * N :] = -200.0
    return [p_BSP, beta_N, omega_N, start_BF], d_y_BSF


def _through(made: Scan, inputs: list[Tensor], d_y_BSF: Tensor, shape: ScanShape) -> tuple[Scanned, Gradients]:
    p_BSP, beta_N, omega_N, start_BF = inputs
    found = made.forward(p_BSP, beta_N, omega_N, start_BF, shape)
    return found, made.backward(p_BSP, beta_N, omega_N, start_BF, found.z_BSF, d_y_BSF, shape)
