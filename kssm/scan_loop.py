"""The coupled scan as its definition stands, one position after the other: what every other form is held against.

Any float type, any device, differentiable by autograd. It is also the form that interventions go through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor

from kssm.scan_maker import Gradients, Scanned, ScanShape

INPUT_FLOOR = 1e-6  # under the root of s: an oscillator that forgets nothing still hears its input
COUPLING_BIAS = -2.0
_UNIT_FLOOR = 1e-12
_VECTOR = 16

Phases = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Puts other phases in the place of a state's: real and imaginary parts [B, G, n] to such ones."""


class Coefficients(NamedTuple):
    """The scan's coefficients at every token, from its inputs."""

    b_re_BSN: Tensor
    b_im_BSN: Tensor
    a_BSN: Tensor
    forgets_BSN: Tensor
    phi_BSN: Tensor
    s_BSN: Tensor
    gate_BSF: Tensor
    k_BSG: Tensor


def coefficients(p_BSP: Tensor, beta_N: Tensor, omega_N: Tensor, shape: ScanShape) -> Coefficients:
    """See `kssm.scan` for the equations; `forgets` is 1 - a without its cancellation."""
    N = shape.oscillators
    b_re, b_im, decay, turn, gate, coupling = torch.split(p_BSP, [N, N, N, N, 2 * N, shape.groups], dim=-1)
    a, forgets = (decay + beta_N).sigmoid(), (-decay - beta_N).sigmoid()
    phi = omega_N + math.pi * (turn / math.pi).tanh() if shape.rotating else torch.zeros_like(a)
    s = (forgets * (1 + a) + INPUT_FLOOR).sqrt()
    k = _sigmoid(coupling + COUPLING_BIAS) if shape.coupled else torch.zeros_like(coupling)
    return Coefficients(b_re, b_im, a, forgets, phi, s, gate, k)


def _sigmoid(x_BSG: Tensor) -> Tensor:
    """Of few numbers a row: torch rounds the last ones of a tensor otherwise than those that fill its vectors."""
    G = x_BSG.shape[-1]
    return F.pad(x_BSG, (0, -G % _VECTOR)).sigmoid()[..., :G]


def scan_by_definition(
    p_BSP: Tensor,
    beta_N: Tensor,
    omega_N: Tensor,
    start_BF: Tensor,
    shape: ScanShape,
    *,
    coupling: float | None = None,
    phases: Phases | None = None,
) -> Scanned:
    """The scan, by a loop over the positions.

    Args:
        p_BSP: inputs [B, S, P].
        beta_N: bias of the decays.
        omega_N: natural frequencies, radians per position.
        start_BF: the state before the first position.
        shape: of the bank.
        coupling: sets k of all groups at all positions to this instead.
        phases: changes the phases of each state as soon as it is made.
    """
    G = shape.groups
    c = coefficients(p_BSP, beta_N, omega_N, shape)
    k_BSG = c.k_BSG if coupling is None else torch.full_like(c.k_BSG, coupling)
    d_re, d_im = c.a_BSN * c.phi_BSN.cos(), c.a_BSN * c.phi_BSN.sin()
    in_re, in_im = c.s_BSN * c.b_re_BSN, c.s_BSN * c.b_im_BSN
    re, im = start_BF.view(-1, 2, G, shape.group).unbind(1)  # [B, G, n] each
    states: list[Tensor] = []
    for t in range(p_BSP.shape[1]):
        k = k_BSG[:, t, :, None]
        w_re = (1 - k) * re + k * re.mean(-1, keepdim=True)
        w_im = (1 - k) * im + k * im.mean(-1, keepdim=True)
        turn_re, turn_im, add_re, add_im = (part[:, t].view_as(re) for part in (d_re, d_im, in_re, in_im))
        re = turn_re * w_re - turn_im * w_im + add_re
        im = turn_re * w_im + turn_im * w_re + add_im
        if phases is not None:
            re, im = phases(re, im)
        states.append(torch.cat((re.flatten(1), im.flatten(1)), -1))
    z_BSF = torch.stack(states, 1)
    return Scanned(z_BSF * F.silu(c.gate_BSF), z_BSF, synchrony(z_BSF, shape), k_BSG.mean(-1))


def synchrony(z_BSF: Tensor, shape: ScanShape) -> Tensor:
    """R of states [..., F]: |mean of the unit phasors| of each group, mean over the groups; [...]."""
    re, im = z_BSF.detach().view(*z_BSF.shape[:-1], 2, shape.groups, shape.group).unbind(-3)
    length = (re * re + im * im + _UNIT_FLOOR).sqrt()
    re, im = (re / length).mean(-1), (im / length).mean(-1)
    R: Tensor = (re * re + im * im).sqrt().mean(-1)
    return R


class LoopScan:
    """See `kssm.scan_maker.Scan`."""

    name = "loop"

    def forward(self, p_BSP: Tensor, beta_N: Tensor, omega_N: Tensor, start_BF: Tensor, shape: ScanShape) -> Scanned:
        """See `kssm.scan_maker.Scan`."""
        return scan_by_definition(p_BSP, beta_N, omega_N, start_BF, shape)

    def backward(
        self,
        p_BSP: Tensor,
        beta_N: Tensor,
        omega_N: Tensor,
        start_BF: Tensor,
        z_BSF: Tensor,  # noqa: ARG002 - made again, with the graph that autograd needs
        d_y_BSF: Tensor,
        shape: ScanShape,
    ) -> Gradients:
        """See `kssm.scan_maker.Scan`."""
        p, beta, omega, start = inputs = [
            tensor.detach().requires_grad_() for tensor in (p_BSP, beta_N, omega_N, start_BF)
        ]
        with torch.enable_grad():
            y_BSF = scan_by_definition(p, beta, omega, start, shape).y_BSF
            found = torch.autograd.grad(y_BSF, inputs, d_y_BSF, allow_unused=True, materialize_grads=True)
        return Gradients(*found)
