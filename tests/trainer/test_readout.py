"""The readout: every implementation that runs here against the definition in float64."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kssm import readout
from kssm.errors import BadUsage
from kssm.readout import order_parameters
from kssm.readout_native import NativeReadout
from kssm.readout_portable import PortableReadout
from kssm.trial import Unavailable
from tests.trainer.phases import assert_right, gradients, phases, synchronised


def forms_until_refused() -> Iterator[NativeReadout]:
    """The native kernel once for each instruction set of this processor, the fastest first."""
    with contextlib.suppress(Unavailable):
        for form in itertools.count():
            yield NativeReadout(form=form)


FORMS = {made.name: made for made in forms_until_refused()}


@pytest.fixture(params=["portable", *FORMS])
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(readout._MAKERS.in_use, "cpu", FORMS.get(request.param, PortableReadout()))
    return request.param


@pytest.mark.parametrize("H", [1, 2, 7, 15, 16, 17, 32, 33, 65])
@pytest.mark.parametrize("shape", [(5,), (3, 1), (2, 3, 9), (4, 48), (3, 192), (70, 131)])
@pytest.mark.usefixtures("chosen")
def test_float32_agrees_with_the_definition_in_float64(shape: tuple[int, ...], H: int) -> None:
    assert_right(phases(*shape, dtype=torch.float32), H)


@pytest.mark.parametrize("R", [0.0, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.usefixtures("chosen")
def test_float32_agrees_at_every_level_of_synchrony(R: float) -> None:
    assert_right(synchronised(256, R), 32)


@pytest.mark.parametrize("value", [1e4, -3e5, 1e20])
@pytest.mark.usefixtures("chosen")
def test_a_phase_far_beyond_the_circle_is_still_read_rightly(value: float) -> None:
    theta = phases(3, 20, dtype=torch.float32).detach()
    theta[1, 7] = value
    assert_right(theta.requires_grad_(), 12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.usefixtures("chosen")
def test_a_phase_that_is_no_number_spoils_its_own_token_alone(value: float) -> None:
    theta = phases(3, 20, dtype=torch.float32).detach()
    theta[1, 7] = value
    readings = order_parameters(theta, 5)
    assert readings[1].isnan().all()
    assert readings[[0, 2]].isfinite().all()


@pytest.mark.usefixtures("chosen")
def test_the_outcome_does_not_depend_on_the_number_of_threads() -> None:
    theta = phases(301, 192, dtype=torch.float32)
    before, outcomes = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            readings = order_parameters(theta, 32)
            outcomes.append((readings, *torch.autograd.grad(readings.sum(), theta)))
    finally:
        torch.set_num_threads(before)
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


@pytest.mark.usefixtures("chosen")
def test_no_token_at_all_is_no_error() -> None:
    theta = torch.zeros(0, 6, requires_grad=True)
    readings = order_parameters(theta, 4)
    assert readings.shape == (0, 12)
    assert torch.autograd.grad(readings.sum(), theta)[0].shape == (0, 6)


@pytest.mark.usefixtures("chosen")
def test_phases_need_not_lie_side_by_side() -> None:
    theta = phases(9, 40, dtype=torch.float32).detach()
    assert torch.equal(order_parameters(theta.T, 6), order_parameters(theta.T.contiguous(), 6))


@pytest.mark.parametrize("H", [1, 5])
def test_float64_passes_gradcheck(H: int) -> None:
    assert torch.autograd.gradcheck(lambda theta: order_parameters(theta, H), (phases(2, 3, 4),))


def test_float64_follows_the_definition() -> None:
    fast, d_fast, plain, d_plain = gradients(phases(2, 3, 9), 32, torch.randn(2, 3, 96).double())
    torch.testing.assert_close(fast, plain, atol=1e-10, rtol=0)
    torch.testing.assert_close(d_fast, d_plain, atol=1e-10, rtol=1e-10)


@pytest.mark.usefixtures("chosen")
def test_each_reading_alone_has_a_gradient() -> None:
    theta = phases(2, 6, dtype=torch.float32)
    for index in range(3):
        direction = torch.zeros(2, 3, 4)
        direction[:, index] = 1
        _, d_fast, _, d_plain = gradients(theta, 4, direction.flatten(1))
        torch.testing.assert_close(d_fast, d_plain, atol=3e-5, rtol=3e-5)


@pytest.mark.usefixtures("chosen")
def test_only_the_phases_and_the_readings_are_kept() -> None:
    kept: list[int] = []
    theta = phases(2, 3, 64, dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        order_parameters(theta, 32)
    assert sorted(kept) == [theta.numel(), 2 * 3 * 96]


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.integers(1, 8))
def test_no_order_parameter_exceeds_one(angles: list[float], H: int) -> None:
    mag = order_parameters(torch.tensor(angles, dtype=torch.float64), H)[2 * H :]
    assert (mag <= 1 + 1e-8).all()


@pytest.mark.usefixtures("chosen")
def test_equal_phases_are_in_full_synchrony_and_opposite_ones_in_none() -> None:
    assert order_parameters(torch.full((10,), 1.3), 3)[6:].tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert order_parameters(torch.tensor([0.0, math.pi]), 2)[4:].tolist() == pytest.approx([1e-4, 1], abs=1e-6)


@pytest.mark.usefixtures("chosen")
def test_cancelled_phases_still_have_a_finite_gradient() -> None:
    theta = torch.tensor([0.0, math.pi], requires_grad=True)
    order_parameters(theta, 2)[4:].sum().backward()
    assert theta.grad is not None
    assert theta.grad.isfinite().all()


def test_without_a_built_kernel_the_portable_one_takes_over_and_says_why(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("kssm.readout.NativeReadout", lambda: NativeReadout(tmp_path))
    try:
        found, why = readout.choose("cpu")
        assert isinstance(found, PortableReadout)
        assert "was not built" in why
        assert "make install" in why
        with pytest.raises(BadUsage, match="--readout native: the native kernel was not built"):
            readout.choose("cpu", "native")
    finally:
        monkeypatch.undo()
        readout.choose("cpu")


def test_a_kernel_of_another_machine_is_passed_over(tmp_path) -> None:
    from importlib.machinery import EXTENSION_SUFFIXES

    (tmp_path / f"_native{EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF of another processor")
    with pytest.raises(Unavailable, match="does not load here"):
        NativeReadout(tmp_path)


def test_the_native_kernel_is_refused_for_another_device() -> None:
    with pytest.raises(BadUsage, match="for the CPU, and the device is mps"):
        readout.choose("mps", "native")


def test_the_forms_of_the_native_kernel_are_told_apart_and_the_fastest_is_taken() -> None:
    if not FORMS:
        pytest.skip("the native kernel was not built")
    assert all(name.startswith("native (") for name in FORMS)
    assert readout.choose("cpu")[0].name == next(iter(FORMS))
    with pytest.raises(Unavailable, match=f"has no form {len(FORMS)} of the native kernel"):
        NativeReadout(form=len(FORMS))
    with pytest.raises(Unavailable):
        NativeReadout(form=-1)
