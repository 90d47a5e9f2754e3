"""The readout: every implementation that runs here against the definition in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kssm import readout
from kssm.errors import BadUsage
from kssm.readout import order_parameters
from kssm.readout_native import NativeReadout, Unavailable
from kssm.readout_portable import PortableReadout


def native_works() -> bool:
    try:
        NativeReadout()
    except Unavailable:
        return False
    return True


IMPLEMENTATIONS = ["portable", "native"] if native_works() else ["portable"]


@pytest.fixture(params=IMPLEMENTATIONS)
def chosen(request: pytest.FixtureRequest) -> Iterator[str]:
    readout.choose("cpu", request.param)
    yield request.param
    readout.choose("cpu")


def by_definition(theta: Tensor, H: int) -> Tensor:
    n = torch.arange(1, H + 1, dtype=theta.dtype)
    angles = theta[..., None] * n
    re, im = angles.cos().mean(-2), angles.sin().mean(-2)
    return torch.cat((re, im, (re**2 + im**2 + 1e-8).sqrt()), -1)


def phases(*shape: int, spread: float = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    theta = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * spread
    return theta.to(dtype).requires_grad_()


def gradients(theta: Tensor, H: int, direction: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Readings and gradient in theta's precision, then by definition in float64."""
    exact = theta.detach().double().requires_grad_()
    fast, plain = order_parameters(theta, H), by_definition(exact, H)
    (d_fast,) = torch.autograd.grad(fast, theta, direction.to(theta.dtype))
    (d_plain,) = torch.autograd.grad(plain, exact, direction.to(theta.dtype).double())
    return fast.double(), d_fast.double(), plain, d_plain


@pytest.mark.parametrize("H", [1, 2, 7, 15, 16, 17, 32, 33, 65])
@pytest.mark.parametrize("shape", [(5,), (3, 1), (2, 3, 9), (4, 48), (3, 192), (70, 131)])
@pytest.mark.usefixtures("chosen")
def test_float32_agrees_with_the_definition_in_float64(shape: tuple[int, ...], H: int) -> None:
    theta = phases(*shape, dtype=torch.float32)
    direction = torch.randn(*shape[:-1], 3 * H, generator=torch.Generator().manual_seed(1))
    fast, d_fast, plain, d_plain = gradients(theta, H, direction)
    few = 2 if shape[-1] < 16 else 1  # roundings of few oscillators do not cancel
    torch.testing.assert_close(fast, plain, atol=few * 1e-6 * max(1, H / 32), rtol=0)
    torch.testing.assert_close(d_fast, d_plain, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("R", [0.0, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.usefixtures("chosen")
def test_float32_agrees_at_every_level_of_synchrony(R: float) -> None:
    """As banks look in training: a common phase, and a spread that leaves R of it."""
    spread = math.sqrt(-2 * math.log(R)) if R else 3.0
    common = phases(256, 1, seed=2).detach()
    theta = (common + phases(256, 192, spread=spread).detach()).float().requires_grad_()
    fast, d_fast, plain, d_plain = gradients(theta, 32, torch.randn(256, 96, generator=torch.Generator()))
    torch.testing.assert_close(fast, plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(d_fast, d_plain, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("value", [1e4, -3e5, 1e20])
@pytest.mark.usefixtures("chosen")
def test_a_phase_far_beyond_the_circle_is_still_read_rightly(value: float) -> None:
    theta = phases(3, 20, dtype=torch.float32).detach()
    theta[1, 7] = value
    fast, d_fast, plain, d_plain = gradients(theta.requires_grad_(), 12, torch.ones(3, 36))
    torch.testing.assert_close(fast, plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(d_fast, d_plain, atol=3e-5, rtol=3e-5)


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
