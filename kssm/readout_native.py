"""The readout in C for CPUs: `kssm/native/readout.c`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from kssm import native

_PURPOSE = "the readout's sums"


class NativeReadout:
    """See `kssm.readout_maker.Readout`; contiguous float32 on the CPU only.

    Args:
        folder: where the built library lies.
        form: see `kssm.native.name_of_form`.

    Raises:
        Unavailable: there is none, or none that this machine or this version can use.
    """

    def __init__(self, folder: Path = native.HOME, form: int = 0) -> None:
        self._library, self._form = native.opened(folder), form
        self.name = native.name_of_form(self._library, form)

    def forward(self, theta_MN: Tensor, H: int) -> Tensor:
        """See `kssm.readout_maker.Readout`."""
        M, N = theta_MN.shape
        readings_MF = theta_MN.new_empty(M, 3 * H)
        arrays = native.addresses((theta_MN, readings_MF))
        failed = self._library.kssm_readout_forward(*arrays, M, N, H, torch.get_num_threads(), self._form)
        native.require_memory(failed, _PURPOSE)
        return readings_MF

    def backward(self, theta_MN: Tensor, readings_MF: Tensor, d_readings_MF: Tensor) -> Tensor:
        """See `kssm.readout_maker.Readout`."""
        M, N = theta_MN.shape
        d_theta_MN = torch.empty_like(theta_MN)
        H, arrays = readings_MF.shape[1] // 3, native.addresses((theta_MN, readings_MF, d_readings_MF, d_theta_MN))
        failed = self._library.kssm_readout_backward(*arrays, M, N, H, torch.get_num_threads(), self._form)
        native.require_memory(failed, _PURPOSE)
        return d_theta_MN
