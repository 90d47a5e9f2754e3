"""Kuramoto oscillators: the mean-field dynamics and the order parameters of a bank of phases.

Symbols, as in the papers; a suffix names a tensor's axes (`theta_BSN` is [B, S, N], `_X` any leading axes):

    theta_j   phase of oscillator j, radians            B   batch
    omega_j   natural phase, where theta_j starts       S   position in the sequence
    K         coupling of the bank                      N   oscillators of a bank, j = 1..N
    Z_n       order parameter of harmonic n,            H   harmonics, n = 1..H
              (1/N) sum_j exp(i n theta_j)              D   width of the residual stream
    R         |Z_1|, synchrony, in [0, 1]               V   vocabulary
    s, c      mean of sin theta_j, of cos theta_j       L   layers

Sources: Kuramoto (1975) for the mean field; Daido (1992) for the order parameters of higher harmonics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MAGNITUDE_FLOOR = 1e-8  # under the root: |Z_n| has a gradient even where the phases cancel

_ZONES = (
    (0.10, "unformed"),
    (0.30, "weak"),
    (0.50, "balance"),
    (0.70, "strong"),
    (0.85, "very high"),
    (0.95, "near-lock"),
)


def zone(order_parameter: float) -> str:
    """The monitor's word for a level of synchrony R; each zone holds its lower bound."""
    return next((name for below, name in _ZONES if order_parameter < below), "lock")


def mean_field_pull(theta_XN: Tensor) -> Tensor:
    """The pull of the mean field on each oscillator, `s cos theta_j - c sin theta_j = r sin(psi - theta_j)`.

    Turning all phases by one angle leaves the pull as it is.

    Args:
        theta_XN: phases [..., N].

    Returns:
        The pull [..., N]; times K it is the change of phase in one Euler step of length 1.
    """
    sin, cos = theta_XN.sin(), theta_XN.cos()  # [..., N]
    return sin.mean(-1, keepdim=True) * cos - cos.mean(-1, keepdim=True) * sin  # [..., N]


def mean_field_step(theta_XN: Tensor, K_X1: Tensor | float) -> Tensor:
    """One Euler step of length 1 of the mean-field Kuramoto model, `theta_j + K r sin(psi - theta_j)`.

    Args:
        theta_XN: phases [..., N].
        K_X1: coupling, [..., 1] or a number.

    Returns:
        The phases after the step [..., N].
    """
    return theta_XN + K_X1 * mean_field_pull(theta_XN)


def magnitude(re: Tensor, im: Tensor) -> Tensor:
    """`|Z| = sqrt(re^2 + im^2 + 1e-8)`, element by element."""
    return (re * re + im * im + MAGNITUDE_FLOOR).sqrt()


def order_parameters(theta_XN: Tensor, H: int) -> tuple[Tensor, Tensor, Tensor]:
    """The order parameters `Z_n = (1/N) sum_j exp(i n theta_j)` for n = 1..H.

    Args:
        theta_XN: phases [..., N].
        H: number of harmonics, 1 or more.

    Returns:
        Re Z [..., H], Im Z [..., H] and |Z| [..., H] with |Z| = sqrt(Re^2 + Im^2 + 1e-8).
    """
    re, im, mag = _OrderParameters.apply(theta_XN, H)  # type: ignore[no-untyped-call]
    return re, im, mag


def _times(re: Tensor, im: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The complex product (re + i im)(cos + i sin); each part costs one pass more than a real product."""
    return (re * cos).addcmul_(im, sin, value=-1), (re * sin).addcmul_(im, cos)


class _OrderParameters(torch.autograd.Function):
    """Powers of z = exp(i theta) one after the other, so that no [..., N, H] tensor ever exists.

    Forward multiplies by z once a harmonic. Backward, with g_n = dL/d Re Z_n - i dL/d Im Z_n, needs
    `dL/dtheta_j = -(1/N) Im sum_n n g_n z_j^n`, a polynomial in z_j, and evaluates it by Horner's rule.
    """

    @staticmethod
    def forward(ctx: Any, theta_XN: Tensor, H: int) -> tuple[Tensor, Tensor, Tensor]:
        cos, sin = theta_XN.cos(), theta_XN.sin()  # [..., N]
        re_XH = theta_XN.new_empty(*theta_XN.shape[:-1], H)
        im_XH = torch.empty_like(re_XH)
        power_re, power_im = cos, sin  # z^n, [..., N]
        for n in range(H):
            if n > 0:
                power_re, power_im = _times(power_re, power_im, cos, sin)
            re_XH[..., n] = power_re.mean(-1)
            im_XH[..., n] = power_im.mean(-1)
        mag_XH = magnitude(re_XH, im_XH)
        ctx.save_for_backward(cos, sin, re_XH, im_XH, mag_XH)
        return re_XH, im_XH, mag_XH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_re: Tensor, d_im: Tensor, d_mag: Tensor) -> tuple[Tensor, None]:
        cos, sin, re_XH, im_XH, mag_XH = ctx.saved_tensors
        H, N = re_XH.shape[-1], cos.shape[-1]
        n_over_N = torch.arange(1, H + 1, dtype=cos.dtype, device=cos.device) / N  # [H]
        d_mag = d_mag / mag_XH  # d|Z| / d Re Z = Re Z / |Z|, and Im likewise
        g_re = n_over_N * torch.addcmul(d_re, d_mag, re_XH)  # [..., H]
        g_im = -n_over_N * torch.addcmul(d_im, d_mag, im_XH)  # [..., H]
        sum_re, sum_im = g_re[..., -1:], g_im[..., -1:]  # [..., 1] at first, then [..., N]
        for n in range(H - 2, -1, -1):
            sum_re, sum_im = (
                torch.addcmul(g_re[..., n, None], sum_re, cos).addcmul_(sum_im, sin, value=-1),
                torch.addcmul(g_im[..., n, None], sum_re, sin).addcmul_(sum_im, cos),
            )
        return -(sum_re * sin + sum_im * cos), None
