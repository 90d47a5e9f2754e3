"""The readout in plain torch: any device, any floating type.

Powers of z = e^{i theta} one after the other in buffers that are made once, so that no [M, N, H] tensor ever exists
and, on a CPU, the work stays in the cache. The equations stand in `kssm.readout`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kssm.oscillators import magnitude

_CHUNK_CPU = 2**17  # phases at a time: five buffers of 0.5 MB


class PortableReadout:
    """See `kssm.readout_maker.Readout`."""

    name = "portable"

    def forward(self, theta_MN: Tensor, H: int) -> Tensor:
        """See `kssm.readout_maker.Readout`."""
        readings_MF = theta_MN.new_empty(len(theta_MN), 3 * H)
        for part in _parts(theta_MN):
            theta, out = theta_MN[part], readings_MF[part]
            cos, sin = theta.cos(), theta.sin()
            re, im, spare = cos.clone(), sin.clone(), torch.empty_like(cos)  # z^n, [m, N]
            for n in range(H):
                if n:
                    _multiply(re, im, cos, sin, spare)
                torch.mean(re, -1, out=out[:, n])
                torch.mean(im, -1, out=out[:, H + n])
            out[:, 2 * H :] = magnitude(out[:, :H], out[:, H : 2 * H])
        return readings_MF

    def backward(self, theta_MN: Tensor, readings_MF: Tensor, d_readings_MF: Tensor) -> Tensor:
        """See `kssm.readout_maker.Readout`."""
        g_re, g_im = harmonic_gradients(readings_MF, d_readings_MF, theta_MN.shape[1])  # [M, H] each
        d_theta_MN = torch.empty_like(theta_MN)
        for part in _parts(theta_MN):
            theta = theta_MN[part]
            cos, sin = theta.cos(), theta.sin()
            re, im = g_re[part, -1:].expand_as(cos).clone(), g_im[part, -1:].expand_as(cos).clone()
            spare = torch.empty_like(cos)
            for n in range(g_re.shape[1] - 2, -1, -1):
                _multiply(re, im, cos, sin, spare)
                re += g_re[part, n, None]
                im += g_im[part, n, None]
            torch.add(re.mul_(sin), im.mul_(cos), out=d_theta_MN[part]).neg_()
        return d_theta_MN


def harmonic_gradients(readings_MF: Tensor, d_readings_MF: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of n g_n / N, [M, H] each, the magnitude's gradient folded in.

    With g_n = dL/d Re Z_n - i dL/d Im Z_n, and d|Z| / d Re Z = Re Z / |Z|, Im likewise.

    Args:
        readings_MF: what forward gave, [M, 3H].
        d_readings_MF: gradient of the loss by them.
        N: oscillators.
    """
    re, im, mag = readings_MF.chunk(3, -1)
    d_re, d_im, d_mag = d_readings_MF.chunk(3, -1)
    d_mag = d_mag / mag
    n_over_N = torch.arange(1, re.shape[1] + 1, dtype=re.dtype, device=re.device) / N  # [H]
    return n_over_N * torch.addcmul(d_re, d_mag, re), -n_over_N * torch.addcmul(d_im, d_mag, im)


def _multiply(re: Tensor, im: Tensor, cos: Tensor, sin: Tensor, spare: Tensor) -> None:
    """(re + i im) times (cos + i sin), in place."""
    torch.mul(re, sin, out=spare)
    re.mul_(cos).addcmul_(im, sin, value=-1)
    im.mul_(cos).add_(spare)


def _parts(theta_MN: Tensor) -> Iterator[slice]:
    M, N = theta_MN.shape
    rows = max(1, _CHUNK_CPU // max(N, 1)) if theta_MN.device.type == "cpu" else max(M, 1)
    return (slice(first, first + rows) for first in range(0, M, rows))
