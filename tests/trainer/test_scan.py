"""The coupled scan: every form that runs here against the definition in float64, and the definition against its own."""

from __future__ import annotations

import cmath
import contextlib
import itertools
import math

import pytest
import torch
from torch import Tensor

from kssm import scan
from kssm.scan_chunked import ChunkedScan
from kssm.scan_loop import LoopScan, scan_by_definition
from kssm.scan_maker import Gradients, Scan, Scanned, ScanShape
from kssm.scan_native import NativeScan
from kssm.trial import Unavailable

FORMS: dict[str, Scan] = {
    "loop": LoopScan(),
    "chunked": ChunkedScan(),
    "chunked by 5": ChunkedScan(5),
    "one by one": ChunkedScan(0),
}
with contextlib.suppress(Unavailable):
    FORMS["native"] = NativeScan()
CHUNK = {"chunked": 16, "chunked by 5": 5}
BANK = ScanShape(48, 16)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Scan:
    return FORMS[request.param]


def inputs(B: int, S: int, shape: ScanShape, decay: float = 1, coupling: float = 0, spread: float = 1) -> Inputs:
    """Inputs in float64 that float32 holds exactly; decay and coupling: what their logits lie around."""
    made = torch.Generator().manual_seed(0)
    N = shape.oscillators
    p = torch.randn(B, S, shape.width, generator=made) * spread
    p[..., 2 * N : 3 * N] += decay
    p[..., 6 * N :] += coupling
    beta, omega = torch.randn(N, generator=made), torch.randn(N, generator=made)
    start = torch.randn(B, 2 * N, generator=made)
    return p.double(), beta.double(), omega.double(), start.double()


def single(given: Inputs) -> Inputs:
    return tuple(tensor.float() for tensor in given)  # type: ignore[return-value]


def both_ways(form: Scan, given: Inputs, shape: ScanShape, d_y: Tensor) -> tuple[Scanned, Gradients]:
    found = form.forward(*given, shape)
    return found, form.backward(*given, found.z_BSF, d_y, shape)


def assert_close(found: Tensor, exact: Tensor, within: float) -> None:
    """Within: relative to the largest; to 0.1 where all are smaller, since everything that comes in is about 1."""
    assert found.shape == exact.shape
    assert (found - exact).abs().max() <= within * exact.abs().max().clamp(min=0.1)


def assert_right(form: Scan, given: Inputs, shape: ScanShape, *, dtype: torch.dtype, within: float) -> None:
    d_y = torch.randn(*given[0].shape[:2], 2 * shape.oscillators, generator=torch.Generator().manual_seed(1))
    cast: Inputs = tuple(tensor.to(dtype) for tensor in given)  # type: ignore[assignment]
    found, d_found = both_ways(form, cast, shape, d_y.to(dtype))
    exact, d_exact = both_ways(LoopScan(), given, shape, d_y.double())
    for name, value, truth in zip(found._fields + d_found._fields, found + d_found, exact + d_exact, strict=True):
        assert value.dtype == dtype, name
        assert_close(value.double(), truth, within)


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("rotating", [True, False])
@pytest.mark.parametrize(
    ("B", "S", "N", "n"), [(3, 1, 16, 16), (2, 16, 32, 8), (2, 37, 21, 7), (5, 64, 64, 16), (1, 131, 48, 16)]
)
def test_values_and_gradients_are_the_definitions(
    form: Scan, B: int, S: int, N: int, n: int, coupled: bool, rotating: bool
) -> None:
    shape = ScanShape(N, n, coupled=coupled, rotating=rotating)
    assert_right(form, inputs(B, S, shape), shape, dtype=torch.float32, within=1e-5)


@pytest.mark.parametrize("decay", [-120, -20, -4, 0, 6, 9])
@pytest.mark.parametrize("coupling", [-30, 0, 30])
def test_whatever_is_forgotten_and_however_they_are_coupled(form: Scan, decay: float, coupling: float) -> None:
    given = inputs(2, 70, BANK, decay, coupling)
    assert_right(form, given, BANK, dtype=torch.float32, within=1e-5)


def test_forgetting_and_keeping_may_change_from_one_position_to_the_next(form: Scan) -> None:
    assert_right(form, inputs(2, 70, BANK, spread=20), BANK, dtype=torch.float32, within=1e-5)


@pytest.mark.parametrize("name", ["chunked", "chunked by 5", "one by one"])
@pytest.mark.parametrize("shape", [ScanShape(12, 4), ScanShape(6, 1), ScanShape(5, 5, coupled=False)])
def test_float64_agrees_to_its_own_rounding(name: str, shape: ScanShape) -> None:
    assert_right(FORMS[name], inputs(2, 37, shape), shape, dtype=torch.float64, within=1e-12)


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("rotating", [True, False])
def test_the_definitions_gradients_are_those_of_its_values(coupled: bool, rotating: bool) -> None:
    shape = ScanShape(4, 2, coupled=coupled, rotating=rotating)
    given = [tensor.requires_grad_() for tensor in inputs(1, 3, shape)]
    assert torch.autograd.gradcheck(lambda *given: scan_by_definition(*given, shape).y_BSF, given, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *given: scan.coupled_scan(*given, shape).y_BSF, given)


def test_the_definition_is_that_of_complex_numbers() -> None:
    p, beta, omega, start = inputs(1, 6, shape := ScanShape(4, 2))
    y, z, R, k_mean = (found[0].tolist() for found in scan_by_definition(p, beta, omega, start, shape))
    states = [complex(start[0, j], start[0, 4 + j]) for j in range(4)]
    for t, row in enumerate(p[0].tolist()):
        ks = [1 / (1 + math.exp(2 - logit)) for logit in row[24:]]
        means = [sum(states[g * 2 : g * 2 + 2]) / 2 for g in range(2)]
        for j in range(4):
            a = 1 / (1 + math.exp(-row[8 + j] - beta[j].item()))
            phi = omega[j].item() + math.pi * math.tanh(row[12 + j] / math.pi)
            w = (1 - ks[j // 2]) * states[j] + ks[j // 2] * means[j // 2]
            drive = math.sqrt(1 - a * a + 1e-6) * complex(row[j], row[4 + j])
            states[j] = a * cmath.exp(1j * phi) * w + drive
        plain = [s.real for s in states] + [s.imag for s in states]
        assert z[t] == pytest.approx(plain, abs=1e-12)
        assert y[t] == pytest.approx(
            [v * g / (1 + math.exp(-g)) for v, g in zip(plain, row[16:24], strict=True)], abs=1e-12
        )
        units = [s / abs(s) for s in states]
        assert R[t] == pytest.approx((abs(units[0] + units[1]) + abs(units[2] + units[3])) / 4, abs=1e-9)
        assert k_mean[t] == pytest.approx(sum(ks) / 2, abs=1e-12)


@pytest.mark.parametrize("later", [3.0, math.inf, math.nan])
@pytest.mark.parametrize("at", [1, 16, 33, 60])
def test_what_comes_later_changes_no_bit_of_what_was(form: Scan, at: int, later: float) -> None:
    p, *rest = single(inputs(2, 61, BANK))
    before = form.forward(p, *rest, BANK)
    p[:, at:] = later
    for ours, theirs in zip(before, form.forward(p, *rest, BANK), strict=True):
        assert torch.equal(ours[:, :at], theirs[:, :at])


@pytest.mark.parametrize("at", [0, 15, 16, 40])
def test_what_comes_later_has_no_gradient_by_what_was(form: Scan, at: int) -> None:
    given = single(inputs(2, 61, BANK))
    d_y = torch.zeros(2, 61, 96)
    d_y[:, at] = 1
    d_p = both_ways(form, given, BANK, d_y)[1].p_BSP
    assert d_p[:, : at + 1].abs().amax((0, 2)).min() > 0
    assert not d_p[:, at + 1 :].any()


@pytest.mark.parametrize("B", [1, 3, 4])
@pytest.mark.parametrize("length", [1, 5, 7, 16, 32, 33, 60])
def test_a_prefix_gives_the_bits_of_the_whole(form: Scan, length: int, B: int) -> None:
    p, *rest = single(inputs(B, 61, BANK))
    part = form.forward(p[:, :length].contiguous(), *rest, BANK)
    for ours, theirs in zip(part, form.forward(p, *rest, BANK), strict=True):
        assert torch.equal(ours, theirs[:, :length])


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("at", [1, 7, 16, 25, 32, 60])
def test_a_scan_goes_on_from_the_state_of_another(name: str, at: int) -> None:
    p, beta, omega, start = single(inputs(3, 61, BANK))
    whole = FORMS[name].forward(p, beta, omega, start, BANK)
    state = FORMS[name].forward(p[:, :at].contiguous(), beta, omega, start, BANK).z_BSF[:, -1].contiguous()
    rest = FORMS[name].forward(p[:, at:].contiguous(), beta, omega, state, BANK)
    for ours, theirs in zip(rest, whole, strict=True):
        assert_close(ours, theirs[:, at:], 0 if at % CHUNK.get(name, 1) == 0 else 1e-5)


def test_gradients_go_through_the_state_that_is_handed_on(form: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "chosen", lambda _: form)
    given = [tensor.requires_grad_() for tensor in single(inputs(2, 50, BANK))]
    p, beta, omega, start = given
    d_y = torch.randn(2, 50, 96)
    whole = scan.coupled_scan(*given, BANK).y_BSF
    exact = torch.autograd.grad(whole, given, d_y)
    first = scan_by_definition(p[:, :20], beta, omega, start, BANK)
    second = scan.coupled_scan(p[:, 20:], beta, omega, first.z_BSF[:, -1], BANK)
    found = torch.autograd.grad(torch.cat((first.y_BSF, second.y_BSF), 1), given, d_y)
    for ours, theirs in zip(found, exact, strict=True):
        assert_close(ours, theirs, 1e-5)


def test_whoever_computes_leaves_no_graph_behind(form: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "chosen", lambda _: form)
    found = scan.coupled_scan(*(tensor.requires_grad_() for tensor in single(inputs(2, 20, BANK))), BANK)
    assert [tensor.requires_grad for tensor in found] == [True, False, False, False]


@pytest.mark.parametrize("name", ["chunked", "chunked by 5", "one by one"])
def test_what_asks_for_gradients_may_be_scanned_without_autograd(name: str) -> None:
    given = single(inputs(2, 20, BANK))
    plain, d_plain = both_ways(FORMS[name], given, BANK, torch.ones(2, 20, 96))
    asking: Inputs = tuple(tensor.requires_grad_() for tensor in given)  # type: ignore[assignment]
    found, d_found = both_ways(FORMS[name], asking, BANK, torch.ones(2, 20, 96))
    for ours, theirs in zip(found + d_found, plain + d_plain, strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad


def test_oscillators_that_are_not_coupled_know_nothing_of_each_other(form: Scan) -> None:
    shape = ScanShape(48, 16, coupled=False)
    given = single(inputs(2, 40, shape))
    alone = form.forward(*given, shape).z_BSF
    given[0][..., 5] += 1  # the drive of oscillator 5, real part
    given[0][..., 6 * 48 :] += 1
    changed = (form.forward(*given, shape).z_BSF != alone).any(1).any(0)
    assert changed.nonzero().flatten().tolist() == [5, 48 + 5]


def test_oscillators_that_are_coupled_hear_their_own_group_alone(form: Scan) -> None:
    given = single(inputs(2, 40, BANK))
    alone = form.forward(*given, BANK).z_BSF
    given[0][..., 5] += 1
    changed = (form.forward(*given, BANK).z_BSF != alone).any(1).any(0)
    assert changed.nonzero().flatten().tolist() == [*range(16), *range(48, 48 + 16)]


def test_wholly_coupled_alike_and_undriven_all_of_a_group_follow_its_mean(form: Scan) -> None:
    p, beta, omega, start = single(inputs(2, 40, BANK))
    p[:], beta[:], omega[:] = 0, 3, 0.1
    p[..., 6 * 48 :] = 100
    z = torch.complex(*form.forward(p, beta, omega, start, BANK).z_BSF.chunk(2, -1)).unflatten(-1, (3, 16))
    mean = torch.complex(*start.chunk(2, -1)).unflatten(-1, (3, 16)).mean(-1, keepdim=True)
    for t in range(40):
        d = cmath.rect(1 / (1 + math.exp(-3)), 0.1) ** (t + 1)
        torch.testing.assert_close(z[:, t], (d * mean).expand(-1, -1, 16), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("coupling", [-2, 2, 30])
def test_an_undriven_bank_never_gains(form: Scan, coupling: float) -> None:
    p, beta, omega, start = single(inputs(2, 300, BANK, decay=20, coupling=coupling))
    p[..., : 2 * 48] = 0
    sizes = torch.cat((start[:, None], form.forward(p, beta, omega, start, BANK).z_BSF), 1).norm(dim=-1)
    assert (sizes[:, 1:] <= sizes[:, :-1] * (1 + 1e-6)).all()


def test_a_driven_bank_stays_within_what_its_drive_allows(form: Scan) -> None:
    p, beta, omega, start = single(inputs(2, 1000, BANK))
    p[..., : 2 * 48] = p[..., : 2 * 48].clamp(-1, 1)
    p[..., 2 * 48 : 3 * 48], beta = 4, torch.zeros(48)
    a = 1 / (1 + math.exp(-4))
    most = math.sqrt(2 * (1 - a * a + 1e-6)) / (1 - a)
    z = form.forward(p, beta, omega, torch.zeros_like(start), BANK).z_BSF
    assert torch.complex(*z.chunk(2, -1)).abs().max() < most
    assert z.abs().max() > 1


def test_synchrony_is_between_none_and_whole(form: Scan) -> None:
    R = form.forward(*single(inputs(3, 40, BANK)), BANK).order_parameter_BS
    assert ((R >= 0) & (R <= 1 + 1e-6)).all()
    assert 0.05 < R.mean() < 0.95


def test_equal_phases_are_whole_synchrony_and_opposite_ones_none(form: Scan) -> None:
    p, beta, omega, _ = single(inputs(1, 3, BANK))
    p[:], omega[:] = 0, 0.2
    p[..., 6 * 48 :] = -100
    away = torch.rand(48) + 0.5
    for start, R in ((away, 1.0), (away * torch.tensor([1.0, -1.0]).repeat(24), 0.0)):
        found = form.forward(p, beta, omega, torch.cat((start, 2 * start))[None], BANK)
        torch.testing.assert_close(found.order_parameter_BS, torch.full((1, 3), R), atol=1e-5, rtol=0)


@pytest.mark.parametrize("switch", ["coupled", "rotating"])
def test_what_is_switched_off_is_neither_read_nor_has_a_gradient(form: Scan, switch: str) -> None:
    shape = ScanShape(48, 16, coupled=switch != "coupled", rotating=switch != "rotating")
    given = single(inputs(2, 40, shape))
    found, d_found = both_ways(form, given, shape, torch.ones(2, 40, 96))
    unread = slice(6 * 48, None) if switch == "coupled" else slice(3 * 48, 4 * 48)
    assert not d_found.p_BSP[..., unread].any()
    given[0][..., unread] += 1
    if switch == "rotating":
        assert not d_found.omega_N.any()
        given[2].add_(1)
    else:
        assert not found.coupling_BS.any()
    for ours, theirs in zip(
        itertools.chain(*both_ways(form, given, shape, torch.ones(2, 40, 96))), found + d_found, strict=True
    ):
        assert torch.equal(ours, theirs)
