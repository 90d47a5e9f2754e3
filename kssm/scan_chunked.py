"""The coupled scan in plain torch, many chunks of the sequence at once: any device, any float type.

Forward and backward are one recurrence (`kssm.scan_recurrence`), backward in reversed time. With g the gradient by the
states as they are read, dz and dw the whole gradients by z and w (see `kssm.scan`), and d = a e^{i phi}:

    dz_t = g_t + (1 - k_{t+1}) dw_{t+1} + k_{t+1} mean dw_{t+1},    dw_t = conj(d_t) dz_t,

which is the recurrence of dw with conj(d) for d, conj(d) g for u, and the next position's k. No autograd graph is made,
and nothing but the states goes from forward to backward.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor

from kssm.scan_loop import Coefficients, coefficients, synchrony
from kssm.scan_maker import Gradients, Scanned, ScanShape
from kssm.scan_recurrence import Pair, recurrence

_CHUNK = 16
_WIDE = 512  # from here on a step works long enough on a CPU that n + 2 times the work is not worth fewer steps


class ChunkedScan:
    """See `kssm.scan_maker.Scan`.

    How the positions are cut never depends on how many there are, so a prefix gives the bits of the whole.

    Args:
        chunk: positions of a chunk; 0 to go through them one by one; None for what was measured to be faster.
    """

    name = "chunked"

    def __init__(self, chunk: int | None = None) -> None:
        self._given = chunk

    def chunk(self, start_BF: Tensor) -> int:
        """Positions of a chunk for such states; 0 where it goes through them one by one."""
        if self._given is not None:
            return self._given
        return 0 if start_BF.device.type == "cpu" and start_BF.numel() >= 2 * _WIDE else _CHUNK

    @torch.no_grad()
    def forward(self, p_BSP: Tensor, beta_N: Tensor, omega_N: Tensor, start_BF: Tensor, shape: ScanShape) -> Scanned:
        """See `kssm.scan_maker.Scan`."""
        c = coefficients(p_BSP, beta_N, omega_N, shape)
        u_BSN = Pair(c.s_BSN * c.b_re_BSN, c.s_BSN * c.b_im_BSN)
        k_BSG = c.k_BSG if shape.coupled else None
        z_BSF = recurrence(_multiplier(c), u_BSN, k_BSG, start_BF, self.chunk(start_BF))
        return Scanned(z_BSF * F.silu(c.gate_BSF), z_BSF, synchrony(z_BSF, shape), c.k_BSG.mean(-1))

    @torch.no_grad()
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
        c = coefficients(p_BSP, beta_N, omega_N, shape)
        g_BSF = d_y_BSF * F.silu(c.gate_BSF)
        dw_BSF = _reversed(_multiplier(c), g_BSF, c.k_BSG if shape.coupled else None, self.chunk(start_BF))
        d_before_BSF = _drawn(dw_BSF, _mean(dw_BSF, c.k_BSG), c.k_BSG)  # by the state before each position
        dz_BSF = g_BSF
        dz_BSF[:, :-1] += d_before_BSF[:, 1:]
        before_BSF = torch.cat((start_BF[:, None], z_BSF[:, :-1]), 1)
        d_p_BSP, d_phi_BSN = _by_inputs(p_BSP, c, before_BSF, dw_BSF, dz_BSF, shape)
        d_p_BSP[..., 4 * shape.oscillators : 6 * shape.oscillators] = d_y_BSF * z_BSF * _silu_slope(c.gate_BSF)
        d_decay_BSN = d_p_BSP[..., 2 * shape.oscillators : 3 * shape.oscillators]
        return Gradients(d_p_BSP, d_decay_BSN.sum((0, 1)), d_phi_BSN.sum((0, 1)), d_before_BSF[:, 0].contiguous())


def _multiplier(c: Coefficients) -> Pair:
    return Pair(c.a_BSN * c.phi_BSN.cos(), c.a_BSN * c.phi_BSN.sin())


def _reversed(d_BSN: Pair, g_BSF: Tensor, k_BSG: Tensor | None, chunk: int) -> Tensor:
    """dw [B, S, F]."""
    d = Pair(d_BSN.re.flip(1), -d_BSN.im.flip(1))
    g_re, g_im = g_BSF.flip(1).chunk(2, -1)
    u = Pair(d.re * g_re - d.im * g_im, d.re * g_im + d.im * g_re)
    k = None if k_BSG is None else k_BSG.flip(1).roll(1, 1)  # the first one draws zeros
    return recurrence(d, u, k, torch.zeros_like(g_BSF[:, 0]), chunk).flip(1)


def _by_inputs(
    p_BSP: Tensor, c: Coefficients, before_BSF: Tensor, dw_BSF: Tensor, dz_BSF: Tensor, shape: ScanShape
) -> tuple[Tensor, Tensor]:
    """The gradient by all inputs but the gate's, and by phi.

    With q = dw conj(w): a dL/da = Re q, so that no a that may be 0 divides; dL/dphi = Im q.
    """
    N = shape.oscillators
    d_p = torch.zeros_like(p_BSP)
    d_b_re, d_b_im, d_decay, d_turn, _, d_coupling = torch.split(d_p, [N, N, N, N, 2 * N, shape.groups], -1)
    mean = _mean(before_BSF, c.k_BSG)
    w_re, w_im = _drawn(before_BSF, mean, c.k_BSG).chunk(2, -1)
    (dw_re, dw_im), (dz_re, dz_im) = dw_BSF.chunk(2, -1), dz_BSF.chunk(2, -1)
    torch.mul(c.s_BSN, dz_re, out=d_b_re)
    torch.mul(c.s_BSN, dz_im, out=d_b_im)
    d_s = c.b_re_BSN * dz_re + c.b_im_BSN * dz_im
    d_decay.copy_(c.forgets_BSN * (dw_re * w_re + dw_im * w_im - c.a_BSN.square() / c.s_BSN * d_s))
    d_phi = dw_im * w_re - dw_re * w_im if shape.rotating else torch.zeros_like(d_s)
    if shape.rotating:
        turn = p_BSP[..., 3 * N : 4 * N]
        d_turn.copy_(d_phi * (1 - (turn / math.pi).tanh().square()))
    if shape.coupled:
        d_k = (_by_group(dw_BSF, c.k_BSG) * (mean - _by_group(before_BSF, c.k_BSG))).sum((2, 4))
        d_coupling.copy_(d_k * c.k_BSG * (1 - c.k_BSG))
    return d_p, d_phi


def _by_group(x_BSF: Tensor, k_BSG: Tensor) -> Tensor:
    return x_BSF.view(*k_BSG.shape[:2], 2, k_BSG.shape[-1], -1)


def _mean(x_BSF: Tensor, k_BSG: Tensor) -> Tensor:
    return _by_group(x_BSF, k_BSG).mean(-1, keepdim=True)


def _drawn(x_BSF: Tensor, mean_BS2G1: Tensor, k_BSG: Tensor) -> Tensor:
    return _by_group(x_BSF, k_BSG).lerp(mean_BS2G1, k_BSG[:, :, None, :, None]).flatten(2)


def _silu_slope(gate: Tensor) -> Tensor:
    opened = gate.sigmoid()
    return opened * (1 + gate * (1 - opened))
