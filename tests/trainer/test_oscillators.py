"""The oscillators: the mean field against its laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kssm.oscillators import mean_field_pull, mean_field_step, zone


def phases(*shape: int, seed: int = 0) -> torch.Tensor:
    theta = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3
    return theta.requires_grad_()


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
    before, after = (torch.exp(1j * t).mean(-1).abs() for t in (theta, mean_field_step(theta, K)))
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
