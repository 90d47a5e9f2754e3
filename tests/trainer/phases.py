"""Phases for tests of the readout, and the truth about them: its definition in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kssm.readout import order_parameters


def by_definition(theta: Tensor, H: int) -> Tensor:
    n = torch.arange(1, H + 1, dtype=theta.dtype)
    angles = theta[..., None] * n
    re, im = angles.cos().mean(-2), angles.sin().mean(-2)
    return torch.cat((re, im, (re**2 + im**2 + 1e-8).sqrt()), -1)


def phases(*shape: int, spread: float = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    theta = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * spread
    return theta.to(dtype).requires_grad_()


def synchronised(tokens: int, R: float) -> Tensor:
    """As banks look in training: a common phase, and a spread that leaves R of it; float32 [tokens, 192]."""
    spread = math.sqrt(-2 * math.log(R)) if R else 3.0
    common = phases(tokens, 1, seed=2).detach()
    return (common + phases(tokens, 192, spread=spread).detach()).float().requires_grad_()


def gradients(theta: Tensor, H: int, direction: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Readings and gradient in theta's precision, then by definition in float64."""
    exact = theta.detach().double().requires_grad_()
    fast, plain = order_parameters(theta, H), by_definition(exact, H)
    (d_fast,) = torch.autograd.grad(fast, theta, direction.to(theta.dtype))
    (d_plain,) = torch.autograd.grad(plain, exact, direction.to(theta.dtype).double())
    return fast.double(), d_fast.double(), plain, d_plain


def assert_right(theta: Tensor, H: int) -> None:
    """The readout of float32 phases keeps what it promises: readings to 1e-6, gradients to 3e-5."""
    direction = torch.randn(*theta.shape[:-1], 3 * H, generator=torch.Generator().manual_seed(1))
    fast, d_fast, plain, d_plain = gradients(theta, H, direction)
    few = 2 if theta.shape[-1] < 16 else 1  # roundings of few oscillators do not cancel
    torch.testing.assert_close(fast, plain, atol=few * 1e-6 * max(1, H / 32), rtol=0)
    torch.testing.assert_close(d_fast, d_plain, atol=3e-5, rtol=3e-5)
