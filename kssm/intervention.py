"""Interventions: a coupling or an order parameter that is set, in the place of the one that the model would have.

The order parameter of a bank of phases is set with the mean phase psi kept. With d_j = theta_j - psi in [-pi, pi),

    d_j(t) = d_j + t (goal_j - d_j),    0 <= t <= 1,

where goal_j is 0 to raise R, and to lower it the splay state in the rank order of the d_j, evenly spaced around the
circle. So t = 0 changes nothing and t = 1 has R = 1 or 0; the smallest t at which R is what was asked for is taken,
and the bank is turned back to psi, which unequal shifts move a little. At R = 0 there is no psi, and nothing is
turned. This is one way among many: every other harmonic of the bank changes with it, so a model that reads those (v3's
readout, v2's and v4's single oscillators) may answer to them. Hence the controls: phases of the same R, dealt to other
oscillators or drawn at random.

Symbols as in `kssm.oscillators` and `kssm.scan`; `_X` any leading axes, F steps of t.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor, nn

from kssm.asked import Place
from kssm.scan_loop import coefficients, scan_by_definition, synchrony
from kssm.scan_maker import Scanned, ScanShape

Arrangement = Literal["kept", "shuffled", "random"]

_SECTIONS = 16  # of the way, looked at together; R may fall before it rises, so the first one that arrives counts
_ROUNDS = 2  # and a straight line in the last section: R to 1e-4
_NEAR = 1e-6  # near R = 1 a last digit of R is a thousandth of the way: what has the R wanted is not moved
_HAS_A_PHASE = 1e-3  # below, the mean phase is rounding


@dataclass(frozen=True, slots=True)
class Intervention:
    """What is set while a model computes.

    Args:
        coupling: k of v4's groups, K of the banks of v2 and v3, at every token; None leaves it.
        order_parameter: R of each group or bank at every token, in [0, 1]; None leaves each one's own.
        arrangement: kept moves the phases as little as it takes; shuffled then deals them to other oscillators,
            which keeps every harmonic; random starts from uniform phases, which keeps R and psi alone. Each token has
            its own draw.
        phases: False leaves the phases alone, True sets them even where R is each one's own.
        at: v4's phases are changed in the state that is carried on, or in what is read out only.
    """

    coupling: float | None = None
    order_parameter: float | None = None
    arrangement: Arrangement = "kept"
    phases: bool = False
    at: Place = "state"


class Intervening:
    """An intervention at work in the banks of a model.

    Args:
        what: is set.
        draws: for arrangements, on the model's device.
    """

    def __init__(self, what: Intervention, draws: torch.Generator) -> None:
        self._what = what
        self._draws = draws

    def coupling(self, K_X1: Tensor) -> Tensor:
        """The coupling instead of a bank's own."""
        return K_X1 if self._what.coupling is None else torch.full_like(K_X1, self._what.coupling)

    def phases(self, theta_XN: Tensor) -> Tensor:
        """The phases instead of a bank's own."""
        what = self._what
        return set_phases(theta_XN, what.order_parameter, what.arrangement, self._draws) if what.phases else theta_XN

    def scan(self, p_BSP: Tensor, beta_N: Tensor, omega_N: Tensor, start_BF: Tensor, shape: ScanShape) -> Scanned:
        """The scan of v4 under the intervention; as `kssm.scan.coupled_scan`, R as it is after it."""
        in_state = self._what.phases and self._what.at == "state"
        found = scan_by_definition(
            p_BSP, beta_N, omega_N, start_BF, shape,
            coupling=self._what.coupling, phases=self._turned if in_state else None,
        )  # fmt: skip
        if in_state or not self._what.phases:
            return found
        parts = found.z_BSF.view(*p_BSP.shape[:2], 2, shape.groups, shape.group).unbind(-3)  # [B, S, G, n] each
        shown_BSF = torch.stack(self._turned(*parts), -3).flatten(-3)
        gate_BSF = coefficients(p_BSP, beta_N, omega_N, shape).gate_BSF
        return found._replace(y_BSF=shown_BSF * F.silu(gate_BSF), order_parameter_BS=synchrony(shown_BSF, shape))

    def _turned(self, re_Xn: Tensor, im_Xn: Tensor) -> tuple[Tensor, Tensor]:
        """States with other phases and the lengths that they had."""
        theta_Xn, length_Xn = self.phases(torch.atan2(im_Xn, re_Xn)), torch.hypot(re_Xn, im_Xn)
        return length_Xn * theta_Xn.cos(), length_Xn * theta_Xn.sin()


@contextlib.contextmanager
def intervening(model: nn.Module, what: Intervention | None, seed: int = 0) -> Iterator[None]:
    """While the context lasts, all banks of oscillators of a model are under an intervention; None leaves them alone.

    Args:
        model: any of ours; whatever in it has an attribute `intervention` is a bank.
        what: is set.
        seed: of shuffled and random arrangements.
    """
    banks = [module for module in model.modules() if hasattr(module, "intervention")]
    draws = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    acting = None if what is None else Intervening(what, draws)
    for bank in banks:
        bank.intervention = acting  # type: ignore[assignment] # a bank's attribute, no module
    try:
        yield
    finally:
        for bank in banks:
            bank.intervention = None  # type: ignore[assignment]


def set_phases(
    theta_XN: Tensor, order_parameter: float | None, arrangement: Arrangement, draws: torch.Generator
) -> Tensor:
    """Phases of a given order parameter about the same mean phase.

    Args:
        theta_XN: phases [..., N], radians.
        order_parameter: R, in [0, 1]; None keeps each bank's own.
        arrangement: see `Intervention`.
        draws: for it, on the phases' device.

    Returns:
        Phases [..., N], whose R is right to 1e-4 where N is 2 or more.
    """
    R_X1, psi_X1 = _mean(theta_XN)
    wanted_X1 = R_X1 if order_parameter is None else torch.full_like(R_X1, order_parameter)
    if arrangement == "random":
        theta_XN = 2 * math.pi * _uniform(theta_XN, draws)
        d_XN = _wrapped(theta_XN - _mean(theta_XN)[1])
    else:
        d_XN = _wrapped(theta_XN - psi_X1)
    d_XN = _moved(d_XN, wanted_X1)
    if arrangement == "shuffled":
        d_XN = d_XN.gather(-1, _uniform(d_XN, draws).argsort(-1))
    return psi_X1 + d_XN


def _moved(d_XN: Tensor, wanted_X1: Tensor) -> Tensor:
    """Deviations from the mean phase, moved until their R is the wanted one; the mean phase stays."""
    rises_X1 = wanted_X1 > _mean(d_XN)[0]
    way_XN = torch.where(rises_X1, 0.0, _splay(d_XN)) - d_XN
    moved_XN = d_XN + _arrival(d_XN, way_XN, wanted_X1, torch.where(rises_X1, 1.0, -1.0)) * way_XN
    R_X1, turned_X1 = _mean(moved_XN)
    return moved_XN - torch.where(R_X1 > _HAS_A_PHASE, turned_X1, 0.0)


def _arrival(d_XN: Tensor, way_XN: Tensor, wanted_X1: Tensor, sign_X1: Tensor) -> Tensor:
    """The smallest t at which R is the wanted one, [..., 1]; the sign tells whether R rises on the way."""
    steps_F = torch.linspace(0, 1, _SECTIONS + 1, dtype=d_XN.dtype, device=d_XN.device)
    low_X1, width_X1 = torch.zeros_like(wanted_X1), torch.ones_like(wanted_X1)
    for _ in range(_ROUNDS):
        t_XF = low_X1 + width_X1 * steps_F
        R_XF = _mean(d_XN[..., None, :] + t_XF[..., None] * way_XN[..., None, :])[0].squeeze(-1)
        lacks_XF = (wanted_X1 - R_XF) * sign_X1
        high_X1 = (lacks_XF[..., :-1] > _NEAR).cumprod(-1).sum(-1, keepdim=True)  # index; the last step always arrives
        before_X1 = (high_X1 - 1).clamp_min(0)
        low_X1, width_X1 = t_XF.gather(-1, before_X1), width_X1 * (high_X1 - before_X1) / _SECTIONS
    lack_X1, over_X1 = lacks_XF.gather(-1, before_X1), -lacks_XF.gather(-1, high_X1)
    return low_X1 + width_X1 * (lack_X1 / (lack_X1 + over_X1).clamp_min(_NEAR)).clamp(0, 1)


def _splay(d_XN: Tensor) -> Tensor:
    """Evenly spaced phases in the rank order of the deviations, R = 0."""
    N = d_XN.shape[-1]
    rank_XN = d_XN.argsort(stable=True, dim=-1).argsort(-1)
    return (2 * rank_XN + 1 - N) * (math.pi / N)


def _mean(theta_XN: Tensor) -> tuple[Tensor, Tensor]:
    """R and psi, [..., 1] each."""
    re_X1, im_X1 = theta_XN.cos().mean(-1, keepdim=True), theta_XN.sin().mean(-1, keepdim=True)
    return torch.hypot(re_X1, im_X1), torch.atan2(im_X1, re_X1)


def _wrapped(angle_X: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return (angle_X + math.pi).remainder(2 * math.pi) - math.pi


def _uniform(like_X: Tensor, draws: torch.Generator) -> Tensor:
    return torch.rand(like_X.shape, generator=draws, device=like_X.device, dtype=like_X.dtype)
