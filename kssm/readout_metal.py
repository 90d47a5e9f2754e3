"""The readout in Metal for Apple's GPUs: `kssm/native/readout.metal`, compiled when a run starts.

Unverified: its arithmetic is tested on a CPU, but it has never run on a Mac. So it is used only after it has
computed rightly on the machine at hand (`kssm.trial.tried`), and its name says so in the log.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).parent / "native" / "readout.metal"
_LANES = 32  # as in the source
_HARMONICS = 16


class MetalReadout:
    """See `kssm.readout_maker.Readout`; contiguous float32 on MPS only."""

    name = "metal (unverified)"

    def __init__(self) -> None:
        self._library = torch.mps.compile_shader(_SOURCE.read_text("utf-8"))

    def forward(self, theta_MN: Tensor, H: int) -> Tensor:
        """See `kssm.readout_maker.Readout`."""
        M, N = theta_MN.shape
        readings_MF = theta_MN.new_empty(M, 3 * H)
        if M:
            self._library.readout_forward(
                theta_MN, readings_MF, N, H, threads=(_whole(H, _HARMONICS) * _LANES, M), group_size=(_LANES, 1)
            )
        return readings_MF

    def backward(self, theta_MN: Tensor, readings_MF: Tensor, d_readings_MF: Tensor) -> Tensor:
        """See `kssm.readout_maker.Readout`."""
        M, N = theta_MN.shape
        d_theta_MN = torch.empty_like(theta_MN)
        if M and N:
            self._library.readout_backward(
                theta_MN, readings_MF, d_readings_MF, d_theta_MN, N, readings_MF.shape[1] // 3,
                threads=(_whole(N, _LANES) * _LANES, M), group_size=(_LANES, 1),
            )  # fmt: skip
        return d_theta_MN


def _whole(count: int, at_a_time: int) -> int:
    return -(-count // at_a_time)
