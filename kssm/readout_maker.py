"""Who can make the readout: what a maker answers, and how far one is from the truth on this machine."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from kssm.trial import first_off

_VALUES_OFF = 1e-5
_GRADIENTS_OFF = 1e-4  # of the largest


class Readout(Protocol):
    """One way to compute the readout. All tensors are contiguous and on one device.

    Attributes:
        name: for people, and for checkpoints.
    """

    name: str

    def forward(self, theta_MN: Tensor, H: int) -> Tensor:
        """Phases [M, N] to readings [M, 3H]."""

    def backward(self, theta_MN: Tensor, readings_MF: Tensor, d_readings_MF: Tensor) -> Tensor:
        """The gradient of the loss by the phases, [M, N].

        Args:
            theta_MN: what forward was given.
            readings_MF: what it gave, [M, 3H].
            d_readings_MF: the gradient of the loss by the readings, [M, 3H].
        """


def furthest_off(made: Readout, device: str) -> str:
    """What of a maker's outcome for a small input is too far from the definition; nothing, if it is right.

    Args:
        made: the maker.
        device: type of the device that it is for.
    """
    generator, H = torch.Generator().manual_seed(0), 18  # so little that torch shares it among no threads
    theta = torch.randn(4, 300, generator=generator) * 3  # more than one block, and not a whole number of them
    theta[1, 7], theta[2, 200] = math.nan, 1e5
    d_readings = torch.randn(4, 3 * H, generator=generator)
    readings = made.forward(theta.to(device), H)
    d_theta = made.backward(theta.to(device), readings, d_readings.to(device))
    if not readings[1].isnan().all():
        return "a phase that is no number goes unnoticed"
    others = [0, 2, 3]
    truth, d_truth = _by_definition(theta[others].double(), d_readings[others].double())
    return first_off([("readings", readings[others], truth)], _VALUES_OFF) or first_off(
        [("gradients", d_theta[others], d_truth)], _GRADIENTS_OFF
    )


def _by_definition(theta_MN: Tensor, d_readings_MF: Tensor) -> tuple[Tensor, Tensor]:
    """Readings and gradient, harmonic by harmonic as the formula stands."""
    n = torch.arange(1, d_readings_MF.shape[1] // 3 + 1, dtype=theta_MN.dtype)
    cos, sin = (theta_MN[..., None] * n).cos(), (theta_MN[..., None] * n).sin()  # [M, N, H]
    re, im = cos.mean(1), sin.mean(1)
    mag = (re**2 + im**2 + 1e-8).sqrt()
    d_re, d_im, d_mag = d_readings_MF[:, None].chunk(3, -1)
    d_re, d_im = d_re + d_mag * (re / mag)[:, None], d_im + d_mag * (im / mag)[:, None]
    return torch.cat((re, im, mag), -1), (n * (d_im * cos - d_re * sin)).sum(-1) / theta_MN.shape[1]
