"""K-SSM v4: oscillators whose state runs through the sequence, coupled by the mean field of their group.

A block, of x = LN h [B, S, D], all maps without bias:

    c = causal depthwise convolution of x, four taps
    p = W_p c                                      the inputs of the scan, P = 6N + G per token
    y = coupled scan of p from the state before    `kssm.scan`: drive, decay, rotation, coupling, gate
    h <- h + W_o LN y + W_2 max(W_1 c, 0)^2        F = 2N -> D; D -> 4D -> D

Both halves look at the same four tokens and are added at once; W_o and W_2 start at 0, so that a model begins as the
table of its embedding. In training, dropout follows the embedding and both halves; `config.dropout` is 0 unless it is
asked for. What each of these choices is worth: docs/models.md.

There are no positions: a text of any length is read, and the state after a prefix (the oscillators' z and the last
three inputs of the convolution) is all that the rest needs to know of it. Symbols as in `kssm.oscillators` and
`kssm.scan`; T = 3 earlier inputs.

Unlike v2 and v3, whose banks forget everything between two tokens, this model mixes positions. It is this project's
own and follows no publication. `config.coupled` and `config.rotating` False are its ablations; with
`config.attention_every` n, every n-th block has causal attention in the place of oscillators.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kssm.attention import CausalAttention
from kssm.config import ModelConfig
from kssm.convolution import causal_convolution
from kssm.feedforward import SquaredFFN
from kssm.intervention import Intervening
from kssm.language_model import EMBEDDING_STD, Features, LanguageModel, State, dropout
from kssm.scan import coupled_scan
from kssm.scan_maker import ScanShape
from kssm.tied import TiedWeight

TAPS = 4
_TAPS_STD = 0.3
_LEAST_KEEPS = 0.3  # of a state from one token to the next: memory of the last letter; the others' up to `config.keeps`
_TURNS = (0.02, 3.0)  # radians per token: a period of some hundred letters to one of two


class Shown(NamedTuple):
    """What a bank shows of itself; no gradient.

    Args:
        order_parameter_BS: R at each token.
        coupling_BS: k at each token.
    """

    order_parameter_BS: Tensor
    coupling_BS: Tensor


class Mixed(NamedTuple):
    """What the mixing half of a block gives.

    Args:
        y_BSD: what it adds to the residual stream.
        after: the state after the text.
        seen_BSD: what it has looked at, for the other half.
        shown: by oscillators; None of attention.
    """

    y_BSD: Tensor
    after: tuple[Tensor, ...]
    seen_BSD: Tensor
    shown: Shown | None = None


class Mix(nn.Module):
    """A bank of coupled oscillators between two linear maps.

    Attributes:
        intervention: what is set in the place of its own coupling or phases; None outside `intervening`.
    """

    intervention: Intervening | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, N = config.hidden, config.oscillators
        self.shape = ScanShape(N, config.group, config.coupled, config.rotating)
        self.coupling_bias = config.coupling_bias
        self.taps = nn.Parameter(_TAPS_STD * torch.randn(TAPS, D))
        self.project = nn.Linear(D, self.shape.width, bias=False)
        self.beta = nn.Parameter(_decays(N, config.keeps)[torch.randperm(N)])  # a group has slow and fast ones
        self.omega = nn.Parameter(_natural_frequencies(N))
        phases = 2 * math.pi * torch.rand(N)
        self.start = nn.Parameter(torch.cat((phases.cos(), phases.sin())))
        self.read_norm = nn.LayerNorm(2 * N, bias=False)
        self.out = nn.Linear(2 * N, D, bias=False)
        with torch.no_grad():
            self.taps[-1] += 1

    def forward(self, x_BSD: Tensor, state: tuple[Tensor, ...]) -> Mixed:
        """Mix [B, S, D] into [B, S, D]; the state before is empty at the beginning of a text."""
        start_BF, tail_BTD = state or self._beginning(x_BSD)
        seen_BSD = causal_convolution(x_BSD, self.taps, tail_BTD)
        p_BSP = self.project(seen_BSD)
        # A phase in radians has no use for 8 bits of mantissa: the oscillators stay out of autocast.
        with torch.autocast(x_BSD.device.type, enabled=False):
            p_BSP = p_BSP.to(self.beta.dtype)
            if self.coupling_bias:
                p_BSP[..., -self.shape.groups :] += self.coupling_bias
            scan = coupled_scan if self.intervention is None else self.intervention.scan
            found = scan(p_BSP, self.beta, self.omega, start_BF, self.shape)
        after = found.z_BSF[:, -1], torch.cat((tail_BTD, x_BSD.detach()), 1)[:, 1 - TAPS :]
        shown = Shown(found.order_parameter_BS, found.coupling_BS)
        return Mixed(self.out(self.read_norm(found.y_BSF)), after, seen_BSD, shown)

    def _beginning(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        B, _, D = x_BSD.shape
        return self.start.expand(B, -1), x_BSD.new_zeros(B, TAPS - 1, D)


class Block(nn.Module):
    """Pre-norm block of oscillators or, in a hybrid, of attention.

    Args:
        config: the shape.
        attends: whether it has attention instead of oscillators.
    """

    def __init__(self, config: ModelConfig, *, attends: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden, bias=False)
        self.mix = CausalAttention(config.hidden) if attends else Mix(config)
        self.ffn = SquaredFFN(config.hidden)
        self.dropout = config.dropout

    def forward(
        self, h_BSD: Tensor, noise: torch.Generator | None, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], Shown | None]:
        """[B, S, D] to [B, S, D], the state after it, and what oscillators show."""
        x_BSD = self.norm(h_BSD)
        if isinstance(self.mix, CausalAttention):
            y_BSD, after = self.mix(x_BSD, state)
            mixed = Mixed(y_BSD, after, seen_BSD=x_BSD)
        else:
            mixed = self.mix(x_BSD, state)
        y_BSD, f_BSD = (dropout(part, self.dropout, noise) for part in (mixed.y_BSD, self.ffn(mixed.seen_BSD)))
        return h_BSD + y_BSD + f_BSD, mixed.after, mixed.shown


class KSSMv4(LanguageModel):
    """The v4 model."""

    remembers = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        every, L = config.attention_every, config.layers
        self.blocks = nn.ModuleList(Block(config, attends=bool(every) and n % every == 0) for n in range(1, L + 1))
        self.norm = nn.LayerNorm(config.hidden, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith(".weight") and parameter.ndim == 2:
                joins = name.endswith(("mix.out.weight", "contract.weight"))  # the residual stream
                nn.init.normal_(parameter, std=0.0 if joins else EMBEDDING_STD)

    def forward(self, tokens_BS: Tensor, noise: torch.Generator | None = None, state: State | None = None) -> Features:
        """See `LanguageModel`."""
        tied = TiedWeight(self.embedding.weight)
        h_BSD = dropout(tied.lookup(tokens_BS), self.config.dropout, noise)
        after: list[tuple[Tensor, ...]] = []
        layers: list[Shown] = []
        for block, before in zip(self.blocks, state or ((),) * len(self.blocks), strict=True):
            h_BSD, left, shown = block(h_BSD, noise, before)
            after.append(left)
            layers += [shown] if shown else []
        R_LBS = torch.stack([layer.order_parameter_BS for layer in layers])
        return Features(
            self.norm(h_BSD),
            order_parameter_L=R_LBS.mean((1, 2)),
            order_parameter_std=R_LBS.mean(0).std(correction=0),
            tied=tied,
            coupling_L=torch.stack([layer.coupling_BS.mean() for layer in layers]),
            state=tuple(after),
        )


def _decays(N: int, keeps: float) -> Tensor:
    """The logits of what is kept, evenly spaced."""
    least, most = (math.log(keep / (1 - keep)) for keep in (_LEAST_KEEPS, keeps))
    return torch.linspace(least, most, N)


def _natural_frequencies(N: int) -> Tensor:
    """Evenly spaced logarithms with alternating signs, in order: neighbours, which share a group, turn alike."""
    slow, fast = (math.log(turn) for turn in _TURNS)
    return torch.linspace(slow, fast, N).exp() * (1 - 2 * (torch.arange(N) % 2))
