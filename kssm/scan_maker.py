"""Who can make the coupled scan: the shape of one, what a maker answers, and the proof that one works here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScanShape:
    """The oscillators of one bank, and which of their couplings are switched on.

    Args:
        oscillators: N.
        group: oscillators that share a mean field, n; divides N. Neighbours in order belong together.
        coupled: False leaves the mean field out (k = 0), and the coupling inputs unread.
        rotating: False leaves the rotation out (phi = 0), and omega and the turn inputs unread.
    """

    oscillators: int
    group: int
    coupled: bool = True
    rotating: bool = True

    @property
    def groups(self) -> int:
        """G."""
        return self.oscillators // self.group

    @property
    def width(self) -> int:
        """P, inputs per token: drive (re, im), decay, turn, gate (re, im) of N each, and a coupling per group."""
        return 6 * self.oscillators + self.groups


class Scanned(NamedTuple):
    """What a scan leaves. F = 2N: real parts, then imaginary ones.

    Args:
        y_BSF: the gated states, what the block reads.
        z_BSF: the states; the last one is where the next scan goes on.
        order_parameter_BS: R, the groups' |mean of z_j / |z_j||, mean over the groups.
        coupling_BS: k, mean over the groups; 0 where uncoupled.
    """

    y_BSF: Tensor
    z_BSF: Tensor
    order_parameter_BS: Tensor
    coupling_BS: Tensor


class Gradients(NamedTuple):
    """Of the loss, by what went into a scan."""

    p_BSP: Tensor
    beta_N: Tensor
    omega_N: Tensor
    start_BF: Tensor


class Scan(Protocol):
    """One way to compute the scan. All tensors are contiguous, of one type and on one device.

    Attributes:
        name: for people, and for checkpoints.
    """

    name: str

    def forward(self, p_BSP: Tensor, beta_N: Tensor, omega_N: Tensor, start_BF: Tensor, shape: ScanShape) -> Scanned:
        """See `kssm.scan`; S is 1 or more."""

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
        """Gradients of the loss.

        Args:
            p_BSP: and the next three, as forward was given them.
            beta_N: see there.
            omega_N: see there.
            start_BF: see there.
            z_BSF: the states that forward gave.
            d_y_BSF: the gradient of the loss by the gated states.
            shape: of the bank.
        """
