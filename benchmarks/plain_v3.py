"""K-SSM v3 the direct way: the formulas in PyTorch eager, as anyone would write them first.

What `kssm` is compared with, and equal to it in every number: same parameters by name (a `kssm` model's state loads
into it), same noise, same loss. Nothing is chunked, fused or saved. Symbols as in `kssm.oscillators`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor, nn


def order_parameters(theta_BSN: Tensor, H: int) -> tuple[Tensor, Tensor, Tensor]:
    """Re Z_n, Im Z_n and |Z_n|, [B, S, H] each, by way of n theta_j, [B, S, N, H]."""
    n_H = torch.arange(1, H + 1, dtype=theta_BSN.dtype)
    angles_BSNH = theta_BSN[..., None] * n_H
    re, im = torch.cos(angles_BSNH).mean(-2), torch.sin(angles_BSNH).mean(-2)
    return re, im, torch.sqrt(re**2 + im**2 + 1e-8)


class Bank(nn.Module):
    """The bistable bank."""

    def __init__(self, D: int, N: int, H: int) -> None:
        super().__init__()
        self.H = H
        self.omega = nn.Parameter(torch.linspace(-math.pi, math.pi, N))
        self.delta = nn.Parameter(torch.tensor(0.2))
        self.system = nn.Linear(D, 10)
        nn.init.orthogonal_(self.system.weight)
        nn.init.constant_(self.system.bias, 0.5)

    def forward(self, x_BSD: Tensor, noise: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b, c, d, e, f, g, t, _i, _j = self.system(x_BSD).unbind(-1)  # ten of [B, S]
        u = ((d * g - c * t) / (a * g - c * e + 1e-6)).clamp(0.1, 10)
        K = 2 * torch.sigmoid(u)[..., None]
        theta = self.omega + x_BSD.mean(-1, keepdim=True)  # [B, S, N]
        s, c1 = theta.sin().mean(-1, keepdim=True), theta.cos().mean(-1, keepdim=True)
        theta = theta + K * (s * theta.cos() - c1 * theta.sin())
        if noise is not None:
            theta = theta - (self.delta.abs() + 1e-5) * torch.randn(theta.shape, generator=noise)
        re, im, mag = order_parameters(theta, self.H)
        return torch.cat((re, im, mag), -1), mag[..., 0].mean(), u.mean(), (b * g - c * f).abs().mean()


class FFN(nn.Module):
    """Linear D -> 4D, GELU, Linear 4D -> D."""

    def __init__(self, D: int) -> None:
        super().__init__()
        self.expand = nn.Linear(D, 4 * D)
        self.contract = nn.Linear(4 * D, D)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(x_BSD)))


class Block(nn.Module):
    """`h <- h + readout(bank(LayerNorm(h)))`, then `h <- h + FFN(LayerNorm(h))`."""

    def __init__(self, D: int, N: int, H: int) -> None:
        super().__init__()
        self.bank_norm = nn.LayerNorm(D)
        self.bank = Bank(D, N, H)
        self.readout = nn.Linear(3 * H, D)
        self.ffn_norm = nn.LayerNorm(D)
        self.ffn = FFN(D)


class PlainV3(nn.Module):
    """K-SSM v3.

    Args:
        V: vocabulary.
        D: hidden size.
        L: layers.
        N: oscillators.
        H: harmonics.
        positions: learned positions.
        std: standard deviation of the token embedding's initial values, 0.02 as ours or 1 as published.
    """

    def __init__(self, V: int, D: int, L: int, N: int, H: int, positions: int = 1024, std: float = 0.02) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.positions = nn.Embedding(positions, D)
        self.blocks = nn.ModuleList(Block(D, N, H) for _ in range(L))
        self.norm = nn.LayerNorm(D)
        nn.init.normal_(self.embedding.weight, std=std)
        nn.init.normal_(self.positions.weight, std=0.02)

    def loss(
        self, rows_BT: Tensor, noise: torch.Generator | None, weights: tuple[float, float, float] = (0.5, 0.1, 0.5)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of token ids [B, S + 1], its cross-entropy, and R, scalars.

        Args:
            rows_BT: token ids.
            noise: generator of the spread; None evaluates without.
            weights: lambda_reg, lambda1, lambda2.
        """
        tokens, targets = rows_BT[:, :-1], rows_BT[:, 1:]
        h = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        R, u, determinant = [], [], []
        for block in self.blocks:
            readings, R_, u_, determinant_ = block.bank(block.bank_norm(h), noise)
            h = h + block.readout(readings)
            h = h + block.ffn(block.ffn_norm(h))
            R.append(R_)
            u.append(u_)
            determinant.append(determinant_)
        logits = F.linear(self.norm(h), self.embedding.weight)  # [B, S, V]
        ce = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        lambda_reg, lambda1, lambda2 = weights
        solvable = lambda1 / (torch.stack(determinant) + 1e-5)
        alive = -lambda2 * torch.log(torch.stack(u).clamp_min(1e-5))
        return ce + lambda_reg * (solvable + alive).mean(), ce, torch.stack(R).mean()
