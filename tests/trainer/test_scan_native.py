"""The coupled scan in C: each instruction set of this processor against the plain loop in float64."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kssm import scan
from kssm.errors import BadUsage
from kssm.scan import coupled_scan
from kssm.scan_loop import LoopScan
from kssm.scan_maker import Gradients, Scan, Scanned, ScanShape
from kssm.scan_native import NativeScan
from kssm.scan_trial import furthest_off
from kssm.trial import Unavailable, tried


def forms_until_refused() -> Iterator[NativeScan]:
    """The native kernel once for each instruction set of this processor, the fastest first."""
    with contextlib.suppress(Unavailable):
        for form in itertools.count():
            yield NativeScan(form=form)


FORMS = {made.name: made for made in forms_until_refused()}
SIXTEENS = ScanShape(64, 16)
SHAPES = [
    SIXTEENS,
    ScanShape(64, 16, coupled=False),
    ScanShape(64, 16, rotating=False),
    ScanShape(32, 16, coupled=False, rotating=False),
    *(ScanShape(*sizes) for sizes in ((1, 1), (4, 4), (7, 7), (12, 3), (30, 5), (30, 1), (40, 8), (48, 24), (96, 32))),
]


@pytest.fixture(params=[*FORMS] or [pytest.param("", marks=pytest.mark.skip("the native kernel was not built"))])
def made(request: pytest.FixtureRequest) -> NativeScan:
    return FORMS[request.param]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs(shape: ScanShape, B: int = 3, S: int = 9) -> list[Tensor]:
    draw, N = torch.Generator().manual_seed(7 * B + S + shape.oscillators), shape.oscillators
    beta_N = torch.linspace(-0.85, 9.2, N)[torch.randperm(N, generator=draw)]  # keeps .3 to .9999
    omega_N = torch.logspace(-1.7, 0.48, N) * (1 - 2 * (torch.arange(N) % 2))
    p_BSP = torch.randn(B, S, shape.width, generator=draw)
    return [p_BSP, beta_N, omega_N, torch.randn(B, 2 * N, generator=draw)]


def gradient_of_y(z_BSF: Tensor) -> Tensor:
    return torch.randn(z_BSF.shape, generator=torch.Generator().manual_seed(1))


def both_ways(made: Scan, given: list[Tensor], shape: ScanShape) -> tuple[Scanned, Gradients]:
    found = made.forward(*given, shape)  # type: ignore[misc]
    d_y_BSF = gradient_of_y(found.z_BSF).to(given[0].dtype)
    return found, made.backward(*given, found.z_BSF, d_y_BSF, shape)  # type: ignore[misc]


def assert_right(made: Scan, given: list[Tensor], shape: ScanShape) -> None:
    got = both_ways(made, given, shape)
    right = both_ways(LoopScan(), [tensor.double() for tensor in given], shape)
    for each, truth in zip(itertools.chain(*got), itertools.chain(*right), strict=True):
        assert each.shape == truth.shape
        assert (each.double() - truth).abs().max() <= 1e-5 * truth.abs().max().clamp_min(1e-6)


@pytest.mark.parametrize("S", [1, 2, 33])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_loop_in_float64(made: NativeScan, shape: ScanShape, S: int) -> None:
    assert_right(made, inputs(shape, S=S), shape)


def test_a_thousand_positions_lose_no_accuracy(made: NativeScan) -> None:
    assert_right(made, inputs(SIXTEENS, B=2, S=1024), SIXTEENS)


@pytest.mark.parametrize("frequency", [1e3, -1e6])
def test_frequencies_far_beyond_the_circle_turn_as_far(made: NativeScan, frequency: float) -> None:
    given = inputs(SIXTEENS)
    given[2][5] = frequency
    assert_right(made, given, SIXTEENS)


@pytest.mark.parametrize("value", [90.0, -90.0, 1e4, -1e4, 1e30, -1e30])
@pytest.mark.parametrize("channel", [2, 3, 4, 5, 6])
def test_logits_beyond_the_exponentials_range_are_no_harm(made: NativeScan, channel: int, value: float) -> None:
    given = inputs(SIXTEENS)
    given[0][1, 4, 64 * channel : 64 * channel + 4] = value
    assert_right(made, given, SIXTEENS)


@pytest.mark.parametrize("channel", range(6))
def test_an_input_that_is_no_number_shows_from_there_on_in_its_own_sequence_alone(
    made: NativeScan, channel: int
) -> None:
    given = inputs(SIXTEENS)
    given[0][1, 4, 64 * channel + 2] = math.nan
    found = made.forward(*given, SIXTEENS)  # type: ignore[misc]
    assert found.y_BSF[1, 4].isnan().any()
    assert found.y_BSF[1, :4].isfinite().all()
    assert found.y_BSF[[0, 2]].isfinite().all()
    if channel < 4:
        assert found.order_parameter_BS[1, 4:].isnan().all()


def test_huge_states_end_in_infinities_not_in_a_crash(made: NativeScan) -> None:
    given = inputs(SIXTEENS)
    given[3][1] = 3e38
    found, gradients = both_ways(made, given, SIXTEENS)
    assert found.y_BSF[[0, 2]].isfinite().all()
    assert gradients.p_BSP[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shape", [SIXTEENS, ScanShape(30, 5)], ids=str)
@pytest.mark.parametrize("cut", [1, 17, 39])
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.usefixtures("threads")
def test_going_on_from_a_state_gives_the_very_bits_of_going_through_at_once(
    made: NativeScan, shape: ScanShape, cut: int, cores: int
) -> None:
    p_BSP, beta_N, omega_N, start_BF = inputs(shape, B=20, S=40)
    torch.set_num_threads(cores)
    whole = made.forward(p_BSP, beta_N, omega_N, start_BF, shape)
    first = made.forward(p_BSP[:, :cut].contiguous(), beta_N, omega_N, start_BF, shape)
    rest = made.forward(p_BSP[:, cut:].contiguous(), beta_N, omega_N, first.z_BSF[:, -1].contiguous(), shape)
    for at_once, *parts in zip(whole, first, rest, strict=True):
        assert torch.equal(at_once, torch.cat(parts, 1))


@pytest.mark.parametrize("shape", [SIXTEENS, ScanShape(30, 5)], ids=str)
@pytest.mark.usefixtures("threads")
def test_the_outcome_does_not_depend_on_the_number_of_threads(made: NativeScan, shape: ScanShape) -> None:
    given, outcomes = inputs(shape, B=31, S=64), []
    for cores in (1, 2, 3, 64):
        torch.set_num_threads(cores)
        outcomes.append([*itertools.chain(*both_ways(made, given, shape))])
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


@pytest.mark.usefixtures("threads")
def test_threads_flush_denormals_if_the_caller_does(made: NativeScan) -> None:
    given = inputs(SIXTEENS, B=31, S=64)
    given[0][:, :, :128] = 0  # no drive: what is there at the beginning fades away
    given[3] *= 1e-37
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    try:
        outcomes = []
        for cores in (1, 2):
            torch.set_num_threads(cores)
            outcomes.append(made.forward(*given, SIXTEENS).z_BSF)  # type: ignore[misc]
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(*outcomes)
    assert outcomes[0].abs()[outcomes[0] != 0].min() >= torch.finfo(torch.float32).tiny


def test_no_sequence_at_all_is_no_error(made: NativeScan) -> None:
    found, gradients = both_ways(made, inputs(SIXTEENS, B=0), SIXTEENS)
    assert found.y_BSF.shape == (0, 9, 128)
    assert not gradients.beta_N.any()
    assert not gradients.omega_N.any()


def test_inputs_that_a_switch_leaves_unread_may_be_no_numbers(made: NativeScan) -> None:
    shape = ScanShape(32, 16, coupled=False, rotating=False)
    given = inputs(shape)
    given[0][:, :, 96:128], given[0][:, :, 192:], given[2][:] = math.nan, math.nan, math.nan
    found, gradients = both_ways(made, given, shape)
    assert all(tensor.isfinite().all() for tensor in (*found, *gradients))
    assert not any(part.any() for part in (gradients.p_BSP[:, :, 96:128], gradients.p_BSP[:, :, 192:]))


def test_nothing_is_kept_but_the_inputs_and_the_states(made: NativeScan, monkeypatch) -> None:
    monkeypatch.setitem(scan._MAKERS.in_use, "cpu", made)
    kept: list[int] = []
    given = [tensor.requires_grad_() for tensor in inputs(SIXTEENS)]
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        found = coupled_scan(*given, SIXTEENS)
    assert sorted(kept) == sorted(tensor.numel() for tensor in (*given, found.z_BSF))


def test_without_a_built_kernel_another_form_takes_over_and_says_why(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("kssm.scan.NativeScan", lambda: NativeScan(tmp_path))
    try:
        found, why = scan.choose("cpu")
        assert found is scan._MAKERS.portable
        assert "was not built" in why
        with pytest.raises(BadUsage, match="--scan native: the native kernel was not built"):
            scan.choose("cpu", "native")
    finally:
        monkeypatch.undo()
        scan.choose("cpu")


def test_the_fastest_form_is_taken_on_the_cpu_and_is_refused_elsewhere() -> None:
    if FORMS:
        assert scan.choose("cpu")[0].name == next(iter(FORMS))
    with pytest.raises(BadUsage, match="for the CPU, and the device is mps"):
        scan.choose("mps", "native")
    with pytest.raises(Unavailable, match=f"has no form {len(FORMS)} of the native kernel"):
        NativeScan(form=len(FORMS))


def test_a_scan_that_was_named_is_taken() -> None:
    try:
        assert scan.choose("cpu", "loop")[0].name == scan.chosen("cpu").name == "loop"
    finally:
        scan.choose("cpu")


class OffByALittle(LoopScan):
    def forward(self, *given) -> Scanned:
        found = super().forward(*given)
        return found._replace(order_parameter_BS=found.order_parameter_BS * 1.0001)


class WrongGradient(LoopScan):
    def backward(self, *given) -> Gradients:
        found = super().backward(*given)
        return found._replace(omega_N=-found.omega_N)


class PassesOverNaN(LoopScan):
    def forward(self, p_BSP: Tensor, *given) -> Scanned:
        return super().forward(p_BSP.nan_to_num(), *given)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (OffByALittle, "order_parameter_BS are off by 1e-04 of the largest"),
        (WrongGradient, r"d_omega_N are off by 2e\+00 of the largest"),
        (PassesOverNaN, "an input that is no number goes unnoticed"),
    ],
)
def test_a_scan_that_computes_wrongly_is_found_out_before_it_is_used(wrong: type[Scan], reason: str) -> None:
    with pytest.raises(Unavailable, match=f"the native kernel computes wrongly here: {reason}"):
        tried("native", wrong, lambda made: furthest_off(made, "cpu"))
