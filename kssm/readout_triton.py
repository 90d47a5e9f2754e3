"""The readout in Triton, for CUDA; imported only there, since only torch's builds for it bring triton.

A program has one warp, one token and 16 harmonics, and starts at a power of z that it takes afresh: n theta is exact
where n is a power of two, so rounding does not pile up over all H. Sums have one fixed order, and nothing is atomic:
the outcome depends on the token alone.

Run on an H100 and in Triton's interpreter, compiled for sm_75 to sm_90; `kssm.trial.tried` decides on the
machine at hand.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# Triton evaluates the annotations of a kernel, and takes none but its own.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_HARMONICS = 16
_MOST_LANES = 256


class TritonReadout:
    """See `kssm.readout_maker.Readout`; contiguous float32 on CUDA only."""

    name = "triton"

    def forward(self, theta_MN: Tensor, H: int) -> Tensor:
        """See `kssm.readout_maker.Readout`."""
        M, N = theta_MN.shape
        readings_MF = theta_MN.new_empty(M, 3 * H)
        if M:  # a grid of nothing is an error
            with _device_of(theta_MN):
                _forward[(M, triton.cdiv(H, _HARMONICS))](
                    theta_MN, readings_MF, N, H, LANES=_lanes(N), HARMONICS=_HARMONICS, num_warps=1
                )
        return readings_MF

    def backward(self, theta_MN: Tensor, readings_MF: Tensor, d_readings_MF: Tensor) -> Tensor:
        """See `kssm.readout_maker.Readout`."""
        M, N = theta_MN.shape
        d_theta_MN = torch.empty_like(theta_MN)
        if M and N:
            with _device_of(theta_MN):
                _backward[(M, triton.cdiv(N, _lanes(N)))](
                    theta_MN, readings_MF, d_readings_MF, d_theta_MN, N, readings_MF.shape[1] // 3,
                    LANES=_lanes(N), num_warps=1,
                )  # fmt: skip
        return d_theta_MN


def _device_of(tensor: Tensor) -> torch.cuda.device_of:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device_of(tensor)


def _lanes(N: int) -> int:
    return int(min(_MOST_LANES, max(32, triton.next_power_of_2(N))))


@triton.jit
def _cos_sin(x):
    """Cody and Waite's reduction by pi/2 in three parts and the polynomials of Cephes (Moshier 1992).

    What the reduction rounds off is put back to first order: an error of z grows with every power of z, and libdevice's
    sine alone would be twice as far off. Beyond 8192 the reduction loses digits, and libdevice takes over.
    """
    if tl.max(tl.abs(x)) > 8192.0:
        cos = tl.cos(x)
        sin = tl.sin(x)
    else:
        shifted = x * 0.636619772367581343 + 12582912.0  # 1.5 * 2^23 rounds; the low bits are the integer
        k = shifted - 12582912.0
        quadrant = shifted.to(tl.int32, bitcast=True)
        high = x - k * 1.5703125
        part = k * 4.837512969970703125e-4  # both exact
        near = high - part
        rest = ((high - near) - part) - k * 7.54978995489188216e-8
        r = near + rest
        low = (near - r) + rest
        z = r * r
        s_tail = r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 + z * -1.9515295891e-4))
        c_tail = z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
        s = r + (s_tail + low)
        c = 1.0 - (0.5 * z - (c_tail - low * r))
        swap = (quadrant & 1) != 0
        cos = tl.where(swap, s, c)
        sin = tl.where(swap, c, s)
        cos = tl.where(((quadrant + 1) & 2) != 0, -cos, cos)
        sin = tl.where((quadrant & 2) != 0, -sin, sin)
    return cos, sin


@triton.jit
def _forward(theta, readings, N, H, LANES: tl.constexpr, HARMONICS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * HARMONICS  # the harmonics first + 1 .. first + HARMONICS
    start = 1  # the greatest power of two up to first
    while start * 2 <= first:
        start *= 2
    places = tl.arange(0, HARMONICS)
    sum_re = tl.zeros((HARMONICS,), tl.float32)
    sum_im = tl.zeros((HARMONICS,), tl.float32)
    for j in range(0, N, LANES):
        lanes = j + tl.arange(0, LANES)
        inside = lanes < N
        angle = tl.load(theta + token * N + lanes, mask=inside, other=0.0)
        cos, sin = _cos_sin(angle)
        re, im = _cos_sin(angle * start)
        re = tl.where(inside, re, 0.0)  # beyond the bank z^n = 0, which adds nothing
        im = tl.where(inside, im, 0.0)
        for _ in range(start, first + 1):
            old = re
            re = old * cos - im * sin
            im = old * sin + im * cos
        for n in range(min(HARMONICS, H - first)):
            sum_re += tl.where(places == n, tl.sum(re), 0.0)
            sum_im += tl.where(places == n, tl.sum(im), 0.0)
            old = re
            re = old * cos - im * sin
            im = old * sin + im * cos
    mean_re = sum_re / N
    mean_im = sum_im / N
    out = readings + token * 3 * H + first + places
    there = first + places < H
    tl.store(out, mean_re, mask=there)
    tl.store(out + H, mean_im, mask=there)
    tl.store(out + 2 * H, tl.sqrt_rn(mean_re * mean_re + mean_im * mean_im + 1e-8), mask=there)


@triton.jit
def _backward(theta, readings, d_readings, d_theta, N, H, LANES: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    lanes = tl.program_id(1) * LANES + tl.arange(0, LANES)
    inside = lanes < N
    angle = tl.load(theta + token * N + lanes, mask=inside, other=0.0)
    cos, sin = _cos_sin(angle)
    re = tl.zeros((LANES,), tl.float32)
    im = tl.zeros((LANES,), tl.float32)
    for back in range(H):  # Horner's rule, from the last harmonic
        Z = readings + token * 3 * H + (H - 1 - back)
        d_Z = d_readings + token * 3 * H + (H - 1 - back)
        d_mag = tl.load(d_Z + 2 * H) / tl.load(Z + 2 * H)
        n_over_N = (H - back) / N
        g_re = n_over_N * (tl.load(d_Z) + d_mag * tl.load(Z))
        g_im = -n_over_N * (tl.load(d_Z + H) + d_mag * tl.load(Z + H))
        old = re
        re = (g_re + old * cos) - im * sin
        im = (g_im + old * sin) + im * cos
    tl.store(d_theta + token * N + lanes, -(re * sin + im * cos), mask=inside)
