"""The K-SSM formulas once more: plain, slow, one token at a time, for the tests to compare with.

Written from the mathematics and not from the models: no shared code, no rewriting for speed. Parameters are the
model's own state, by name, so that gradients land where the model's do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Drop = Callable[[str, int, int, Tensor], Tensor]


@dataclass
class Result:
    logits: Tensor  # [B, S, V]
    R: Tensor  # [layers, B, S]
    u: Tensor  # [layers, B, S]
    determinant: Tensor  # [layers, B, S]


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def layer_norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    return (x - mean) / (variance + 1e-5) ** 0.5 * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def mean_of(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum() / len(values)


def mean_field_step(theta: list[Tensor], K: Tensor) -> list[Tensor]:
    s = mean_of([t.sin() for t in theta])
    c = mean_of([t.cos() for t in theta])
    return [t + K * (s * t.cos() - c * t.sin()) for t in theta]


def order_parameter(theta: list[Tensor], n: int) -> tuple[Tensor, Tensor, Tensor]:
    re = mean_of([(n * t).cos() for t in theta])
    im = mean_of([(n * t).sin() for t in theta])
    return re, im, (re**2 + im**2 + 1e-8) ** 0.5


def v2_bank(p: Parameters, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The published bank: its output still contains its input."""
    omega = p[f"{layer}.bank.omega"]
    projected = linear(p, f"{layer}.bank.phases", x)
    K = 2 * sigmoid(linear(p, f"{layer}.bank.coupling", x)[0])
    theta = mean_field_step([omega[j] + projected[j] for j in range(len(omega))], K)
    sin_and_cos = torch.stack([t.sin() for t in theta] + [t.cos() for t in theta])
    return x + linear(p, f"{layer}.readout", sin_and_cos), order_parameter(theta, 1)[2]


def v3_bank(
    p: Parameters, layer: str, x: Tensor, eps: Tensor | None, H: int, bistable: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    omega, delta = p[f"{layer}.bank.omega"], p[f"{layer}.bank.delta"]
    a, b, c, d, e, f, g, t, _i, _j = linear(p, f"{layer}.bank.system", x)
    u = (d * g - c * t) / (a * g - c * e + 1e-6)
    if bistable:
        u = torch.clamp(u, 0.1, 10)
    theta = [omega[j] + x.sum() / len(x) for j in range(len(omega))]
    theta = mean_field_step(theta, 2 * sigmoid(u))
    if eps is not None:
        theta = [theta[j] - (abs(delta) + 1e-5) * eps[j] for j in range(len(omega))]
    Z = [order_parameter(theta, n) for n in range(1, H + 1)]
    readings = torch.stack([z[0] for z in Z] + [z[1] for z in Z] + [z[2] for z in Z])
    return linear(p, f"{layer}.readout", readings), Z[0][2], u, b * g - c * f


def v2(p: Parameters, tokens: Tensor, layers: int, drop: Drop | None = None) -> Result:
    """`drop(place, b, s, x)` is the dropout of x at "embedding", "0.bank", "0.ffn", "1.bank" and so on."""
    drop = drop or (lambda _place, _b, _s, x: x)

    def token(b: int, s: int) -> tuple[Tensor, list[Tensor]]:
        h = drop("embedding", b, s, p["embedding.weight"][tokens[b, s]] + p["positions.weight"][s])
        facts = []
        for number in range(layers):
            layer = f"blocks.{number}"
            x = layer_norm(p, f"{layer}.bank_norm", h)
            out, R = v2_bank(p, layer, x)
            h = h + drop(f"{number}.bank", b, s, out - x)
            h = h + drop(f"{number}.ffn", b, s, ffn(p, layer, h))
            facts.append(torch.stack([R, torch.zeros_like(R), torch.zeros_like(R)]))
        return h, facts

    return every_token(p, tokens, token)


def v3(
    p: Parameters, tokens: Tensor, layers: int, H: int, eps_LBSN: Tensor | None = None, bistable: bool = True
) -> Result:
    """`eps_LBSN` is the standard normal noise of the spread."""

    def token(b: int, s: int) -> tuple[Tensor, list[Tensor]]:
        h = p["embedding.weight"][tokens[b, s]] + p["positions.weight"][s]
        facts = []
        for number in range(layers):
            layer = f"blocks.{number}"
            eps = None if eps_LBSN is None else eps_LBSN[number, b, s]
            out, *fact = v3_bank(p, layer, layer_norm(p, f"{layer}.bank_norm", h), eps, H, bistable)
            h = h + out
            h = h + ffn(p, layer, h)
            facts.append(torch.stack(fact))
        return h, facts

    return every_token(p, tokens, token)


def every_token(p: Parameters, tokens: Tensor, token: Callable[[int, int], tuple[Tensor, list[Tensor]]]) -> Result:
    B, S = tokens.shape
    logits, facts = [], []
    for b in range(B):
        for s in range(S):
            h, fact_per_layer = token(b, s)
            logits.append(p["embedding.weight"] @ layer_norm(p, "norm", h))
            facts.append(torch.stack(fact_per_layer))
    R, u, determinant = torch.stack(facts).view(B, S, -1, 3).permute(3, 2, 0, 1)
    return Result(torch.stack(logits).view(B, S, -1), R, u, determinant)


def ffn(p: Parameters, layer: str, h: Tensor) -> Tensor:
    x = layer_norm(p, f"{layer}.ffn_norm", h)
    return linear(p, f"{layer}.ffn.contract", gelu(linear(p, f"{layer}.ffn.expand", x)))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    B, S, _ = logits.shape
    each = [torch.log(torch.exp(logits[b, s]).sum()) - logits[b, s, targets[b, s]] for b in range(B) for s in range(S)]
    return mean_of(each)


def regulariser(result: Result, lambda1: float, lambda2: float) -> Tensor:
    layers = []
    for u, determinant in zip(result.u, result.determinant, strict=True):
        mean_u = torch.clamp(u.mean(), min=1e-5)
        layers.append(lambda1 / (determinant.abs().mean() + 1e-5) + lambda2 * -torch.log(mean_u))
    return mean_of(layers)
