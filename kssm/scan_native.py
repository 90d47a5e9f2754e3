"""The coupled scan in C for CPUs: `kssm/native/scan.c`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from kssm import native
from kssm.scan_maker import Gradients, Scanned, ScanShape


class NativeScan:
    """See `kssm.scan_maker.Scan`; contiguous float32 on the CPU only.

    A state may be handed on anywhere: scanning a sequence in parts gives the very bits of scanning it at once.

    Args:
        folder: where the built library lies.
        form: see `kssm.native.name_of_form`.

    Raises:
        Unavailable: there is none, or none that this machine or this version can use.
    """

    def __init__(self, folder: Path = native.HOME, form: int = 0) -> None:
        self._library, self._form = native.opened(folder), form
        self.name = native.name_of_form(self._library, form)

    def forward(self, p_BSP: Tensor, beta_N: Tensor, omega_N: Tensor, start_BF: Tensor, shape: ScanShape) -> Scanned:
        """See `kssm.scan_maker.Scan`."""
        B, S, _ = p_BSP.shape
        sizes = ((B, S, start_BF.shape[1]),) * 2 + ((B, S),) * 2
        found = Scanned(*(p_BSP.new_empty(size) for size in sizes))
        arrays = native.addresses((p_BSP, beta_N, omega_N, start_BF, *found))
        native.require_memory(
            self._library.kssm_scan_forward(*arrays, B, S, *self._told(shape)), "the scan's copies of a token"
        )
        return found

    def backward(
        self,
        p_BSP: Tensor,
        beta_N: Tensor,
        omega_N: Tensor,
        start_BF: Tensor,
        z_BSF: Tensor,
        d_y_BSF: Tensor,
        shape: ScanShape,
    ) -> Gradients:
        """See `kssm.scan_maker.Scan`."""
        B, S, _ = p_BSP.shape
        inputs = (p_BSP, beta_N, omega_N, start_BF)
        found = Gradients(*(torch.empty_like(tensor) for tensor in inputs))
        arrays = native.addresses((*inputs, z_BSF, d_y_BSF, *found))
        native.require_memory(
            self._library.kssm_scan_backward(*arrays, B, S, *self._told(shape)), "the scan's sums over sequences"
        )
        return found

    def _told(self, shape: ScanShape) -> tuple[int, ...]:
        """The arguments of both functions that are no arrays, after B and S."""
        switches = (int(shape.coupled), int(shape.rotating))
        return (shape.oscillators, shape.group, *switches, torch.get_num_threads(), self._form)
