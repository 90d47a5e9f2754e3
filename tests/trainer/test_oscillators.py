"""The oscillators: order parameters against their definition, the mean field against its laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kssm.oscillators import mean_field_pull, mean_field_step, order_parameters, zone


def by_definition(theta: torch.Tensor, H: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n = torch.arange(1, H + 1, dtype=theta.dtype)
    angles = theta[..., None] * n
    re, im = angles.cos().mean(-2), angles.sin().mean(-2)
    return re, im, (re**2 + im**2 + 1e-8).sqrt()


def phases(*shape: int, seed: int = 0) -> torch.Tensor:
    theta = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3
    return theta.requires_grad_()


@pytest.mark.parametrize("H", [1, 2, 7, 32])
@pytest.mark.parametrize("shape", [(5,), (3, 1), (2, 3, 9)])
def test_order_parameters_and_their_gradient_follow_the_definition(shape: tuple[int, ...], H: int) -> None:
    theta = phases(*shape)
    fast, plain = order_parameters(theta, H), by_definition(theta, H)
    directions = [torch.randn_like(value) for value in plain]
    d_fast, d_plain = (
        torch.autograd.grad(sum((value * d).sum() for value, d in zip(values, directions, strict=True)), theta)[0]
        for values in (fast, plain)
    )
    for value, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(d_fast, d_plain, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("H", [1, 5])
def test_order_parameters_pass_gradcheck(H: int) -> None:
    assert torch.autograd.gradcheck(lambda theta: order_parameters(theta, H), (phases(2, 3, 4),))


def test_each_output_alone_has_a_gradient() -> None:
    theta = phases(2, 6)
    for index in range(3):
        fast = torch.autograd.grad(order_parameters(theta, 4)[index].sum(), theta)[0]
        plain = torch.autograd.grad(by_definition(theta, 4)[index].sum(), theta)[0]
        torch.testing.assert_close(fast, plain, atol=1e-10, rtol=0)


def test_nothing_of_the_size_of_phases_times_harmonics_is_kept() -> None:
    kept: list[int] = []
    theta = phases(2, 3, 64)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        order_parameters(theta, 32)
    assert max(kept) == theta.numel()


def test_float32_stays_near_the_definition_at_the_highest_harmonic() -> None:
    theta = phases(64, 192).detach()
    for fast, plain in zip(order_parameters(theta.float(), 32), by_definition(theta, 32), strict=True):
        torch.testing.assert_close(fast.double(), plain, atol=2e-5, rtol=0)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.integers(1, 8))
def test_no_order_parameter_exceeds_one(angles: list[float], H: int) -> None:
    _, _, mag = order_parameters(torch.tensor(angles, dtype=torch.float64), H)
    assert (mag <= 1 + 1e-8).all()


def test_equal_phases_are_in_full_synchrony_and_opposite_ones_in_none() -> None:
    assert order_parameters(torch.full((10,), 1.3), 3)[2].tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    apart = torch.tensor([0.0, math.pi], dtype=torch.float64)
    assert order_parameters(apart, 2)[2].tolist() == pytest.approx([1e-4, 1], abs=1e-6)


def test_cancelled_phases_still_have_a_finite_gradient() -> None:
    theta = torch.tensor([0.0, math.pi], requires_grad=True)
    order_parameters(theta, 2)[2].sum().backward()
    assert theta.grad is not None
    assert theta.grad.isfinite().all()


def test_the_mean_field_pulls_by_r_sin_psi_minus_theta() -> None:
    theta = phases(3, 7).detach()
    Z = torch.exp(1j * theta).mean(-1, keepdim=True)
    expected = Z.abs() * torch.sin(Z.angle() - theta)
    torch.testing.assert_close(mean_field_pull(theta), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(mean_field_step(theta, 0.7), theta + 0.7 * expected, atol=1e-12, rtol=0)


def test_the_pull_does_not_feel_a_turn_of_all_phases() -> None:
    theta = phases(3, 7).detach()
    torch.testing.assert_close(mean_field_pull(theta + 2.1), mean_field_pull(theta), atol=1e-12, rtol=0)


@given(st.floats(0.01, 0.9))
def test_a_step_of_weak_coupling_raises_synchrony(K: float) -> None:
    theta = phases(50, 11).detach()
    before, after = (order_parameters(t, 1)[2] for t in (theta, mean_field_step(theta, K)))
    assert (after >= before).all()


@pytest.mark.parametrize(
    ("R", "word"),
    [
        (0.0, "unformed"), (0.0999, "unformed"), (0.10, "weak"), (0.154, "weak"), (0.30, "balance"), (0.49, "balance"),
        (0.50, "strong"), (0.70, "very high"), (0.85, "near-lock"), (0.9499, "near-lock"),
        (0.95, "lock"), (1.0, "lock"),
    ],
)  # fmt: skip
def test_each_level_of_synchrony_has_its_zone(R: float, word: str) -> None:
    assert zone(R) == word
