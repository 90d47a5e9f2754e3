"""Kuramoto oscillators: the mean-field dynamics of a bank of phases, and the glossary of symbols.

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

from torch import Tensor

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
