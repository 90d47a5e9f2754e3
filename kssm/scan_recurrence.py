"""The recurrence under the coupled scan, in plain torch, many chunks of the sequence at once.

Complex numbers as two real parts, per group of n oscillators:

    z_t = d_t w_t + u_t,    w_t = (1 - k_t) z_{t-1} + k_t mean z_{t-1}.

A chunk of C positions is an affine map of the state before it. All chunks at once are run from the n unit vectors of
each group and, with the inputs, from zero, which gives the maps; then the state is handed from chunk to chunk by them;
then all chunks at once are run from the states before them. 2C + S/C steps take the place of S, at n + 2 times the
arithmetic. Nothing is divided by a product of decays, which may vanish. Where a chunk ends, the state that is handed on
is the state that is given out: a scan that goes on there goes on with the same bits.

Letters as in `kssm.scan`, and: C positions of a chunk; T chunks; Y = BG, the groups of all sequences; V = n + 1, the
unit vectors and the zero state that hears the inputs; 2 real and imaginary part. Within, time and oscillators come
first and Y last: torch is then quick at a mean over a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor

_ALIKE = 64  # columns that a vector loop of torch takes at once; its remainder rounds in another way


class Pair(NamedTuple):
    """Complex numbers; MPS has none."""

    re: Tensor
    im: Tensor


class _Laid(NamedTuple):
    """What a recurrence is made of, position by position of all chunks."""

    d_C2nTY: Tensor
    u_C2nTY: Tensor
    k_CTY: Tensor | None

    def steps(self) -> Iterator[tuple[Tensor, ...]]:
        """Each position's d (real, imaginary) [n, T, Y], u [2, n, T, Y] and k [T, Y]."""
        d_re, d_im, u = self.d_C2nTY[:, 0].unbind(), self.d_C2nTY[:, 1].unbind(), self.u_C2nTY.unbind()
        return zip(d_re, d_im, u, d_re if self.k_CTY is None else self.k_CTY.unbind(), strict=True)


def recurrence(d_BSN: Pair, u_BSN: Pair, k_BSG: Tensor | None, start_BF: Tensor, chunk: int) -> Tensor:
    """All states of the recurrence.

    Args:
        d_BSN: what the states are multiplied by.
        u_BSN: what is added to them.
        k_BSG: how far the states of a group are drawn to their mean; None for not at all.
        start_BF: the states before the first position.
        chunk: C; 0 to go through the positions one by one.

    Returns:
        The states [B, S, F].
    """
    B, S, N = d_BSN.re.shape
    n = 1 if k_BSG is None else N // k_BSG.shape[-1]
    C = min(chunk or S, S)
    T = -(-S // C)
    if chunk:
        T += -T % (_ALIKE // math.gcd(_ALIKE, B * N // n))
    k_CTY = None if k_BSG is None else _laid((k_BSG,), 1, T, C)[:, 0, 0]
    laid = _Laid(_laid(d_BSN, n, T, C), _laid(u_BSN, n, T, C), k_CTY)
    start_2nY = start_BF.view(B, 2, -1, n).permute(1, 3, 0, 2).reshape(2, n, -1)
    if chunk == C:
        after_2nTY = _handed_on(_maps(laid), start_2nY)
        before_2nTY = torch.cat((start_2nY[:, :, None], after_2nTY[:, :, :-1]), 2)
        states_C2nTY = _run(laid, before_2nTY)
        states_C2nTY[-1] = after_2nTY
    else:
        states_C2nTY = _run(laid, start_2nY[:, :, None].repeat(1, 1, T, 1))
    return _as_given(states_C2nTY, B, S)


def _laid(parts_BSX: tuple[Tensor, ...], n: int, T: int, C: int) -> Tensor:
    """[C, parts, n, T, Y]; zeros beyond the end of the sequence."""
    B, S, X = parts_BSX[0].shape
    laid = parts_BSX[0].new_empty(C, len(parts_BSX), n, T, B, X // n)
    for number, part in enumerate(parts_BSX):
        whole = part if S == T * C else F.pad(part, (0, 0, 0, T * C - S))
        laid[:, number] = whole.view(B, T, C, -1, n).permute(2, 4, 1, 0, 3)
    return laid.flatten(-2)


def _as_given(states_C2nTY: Tensor, B: int, S: int) -> Tensor:
    C, _, n, T, _ = states_C2nTY.shape
    states_BTC2Gn = states_C2nTY.view(C, 2, n, T, B, -1).permute(4, 3, 0, 1, 5, 2)
    return states_BTC2Gn.reshape(B, T * C, -1)[:, :S].contiguous()


def _run(laid: _Laid, before_2nTY: Tensor) -> Tensor:
    """The states [C, 2, n, T, Y] of chunks, from those before them."""
    states_C2nTY = torch.empty_like(laid.u_C2nTY)
    draw, z = _Draw(before_2nTY, laid.k_CTY is not None), before_2nTY
    outs = states_C2nTY.unbind(), states_C2nTY[:, 0].unbind(), states_C2nTY[:, 1].unbind()
    for (d_re, d_im, u, k), out, out_re, out_im in zip(laid.steps(), *outs, strict=True):
        w, w_re, w_im = draw(z, k)
        torch.addcmul(u, d_re, w, out=out)
        out_re.addcmul_(d_im, w_im, value=-1)
        out_im.addcmul_(d_im, w_re)
        z = out
    return states_C2nTY


def _maps(laid: _Laid) -> Tensor:
    """The chunks' affine maps [2, n, V, T, Y]: where the unit vectors go, and last the zero state."""
    _, _, n, T, Y = laid.u_C2nTY.shape
    z = laid.u_C2nTY.new_zeros(2, n, n + 1, T, Y)
    z[0, :, :n] = torch.eye(n, dtype=z.dtype, device=z.device)[:, :, None, None]
    (z_re, z_im), heard, draw = z.unbind(), z[:, :, n], _Draw(z, laid.k_CTY is not None)
    for d_re, d_im, u, k in laid.steps():
        w, w_re, w_im = draw(z, k)
        torch.mul(w, d_re[:, None], out=z)
        z_re.addcmul_(d_im[:, None], w_im, value=-1)
        z_im.addcmul_(d_im[:, None], w_re)
        heard += u
    return z


def _handed_on(maps_2nVTY: Tensor, start_2nY: Tensor) -> Tensor:
    """The states after each chunk, [2, n, T, Y]."""
    _, n, _, T, Y = maps_2nVTY.shape
    re, im = maps_2nVTY[:, :, :n].unbind()
    of_im_2nnTY = torch.stack((-im, re))  # where i times the unit vectors go
    A_TFFY = torch.cat((maps_2nVTY[:, :, :n], of_im_2nnTY), 2).permute(3, 2, 0, 1, 4).reshape(T, 2 * n, 2 * n, Y)
    heard_TFY = maps_2nVTY[:, :, n].permute(2, 0, 1, 3).reshape(T, 2 * n, Y)
    state_FY, after = start_2nY.reshape(2 * n, Y), []
    for A_FFY, heard_FY in zip(A_TFFY.unbind(), heard_TFY.unbind(), strict=True):
        state_FY = (A_FFY * state_FY[:, None]).sum(0).add_(heard_FY)  # not by matmul: TF32 would do it to three digits
        after.append(state_FY)
    return torch.stack(after, 1).view(2, n, T, Y)


class _Draw:
    """Draws states [2, n, ..., T, Y] to their groups' means, into a buffer of its own."""

    def __init__(self, like: Tensor, coupled: bool) -> None:
        self._w = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        self._parts = (self._w, *self._w.unbind())
        self._mean = torch.empty_like(self._w[:, :1])
        self._one_over_n = like.new_full((1,), 1 / like.shape[1])
        self._coupled = coupled

    def __call__(self, z: Tensor, k_TY: Tensor) -> tuple[Tensor, ...]:
        """w, its real and its imaginary part."""
        if self._coupled:
            torch.sum(z, 1, keepdim=True, out=self._mean)  # mean(out=) takes twice as long
            torch.lerp(z, self._mean.mul_(self._one_over_n), k_TY, out=self._w)
        else:
            self._w.copy_(z)
        return self._parts
