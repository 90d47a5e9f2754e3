"""What the K-SSM models share: embedding, blocks, norms, tied head; a model brings its own bank of oscillators.

Config -> KSSM -> Block -> Bank. Symbols stand in `kssm.oscillators`; a suffix names a tensor's axes: B batch,
S position, D hidden, N oscillators, H harmonics, L layers, V vocabulary, F readings of a bank.

Neither v2 nor v3 mixes positions: a logit depends on its own token and position alone. They are position-aware
bigram models, and the bigram entropy of the text is what their loss can hope for.

`noise` is the generator of everything random in a forward pass. None means evaluation: no dropout, no spread of the
phases. There is no training mode beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor, nn

from kssm.config import ModelConfig
from kssm.errors import BadUsage
from kssm.feedforward import FFN
from kssm.tied import TiedWeight

EMBEDDING_STD = 0.02


class Readings(NamedTuple):
    """What a bank of oscillators shows of itself.

    Args:
        values_BSF: the readings that the block's readout maps back to D.
        order_parameter_BS: R at each token.
        u: mean of the bistable coordinate over the tokens, a scalar; None where the model has none.
        determinant: mean |Delta| over the tokens, a scalar; None where the model has none.
    """

    values_BSF: Tensor
    order_parameter_BS: Tensor
    u: Tensor | None = None
    determinant: Tensor | None = None


class Features(NamedTuple):
    """What a model computes from tokens, short of the logits.

    Args:
        hidden_BSD: the normed last hidden state, for `KSSM.logits`.
        order_parameter_L: R of each layer, mean over the tokens; carries no gradient.
        order_parameter_std: standard deviation over the tokens of the layers' mean R; carries no gradient.
        u_L: mean u of each layer, with gradient; None for v2.
        determinant_L: mean |Delta| of each layer, with gradient; None for v2.
        tied: embedding and head of this pass, for the loss.
    """

    hidden_BSD: Tensor
    order_parameter_L: Tensor
    order_parameter_std: Tensor
    u_L: Tensor | None
    determinant_L: Tensor | None
    tied: TiedWeight


class Bank(nn.Module):
    """A bank of oscillators: normed hidden state in, readings out; `readings` (F) is how many per token."""

    readings: int

    def forward(self, x_BSD: Tensor, noise: torch.Generator | None) -> Readings:
        """Readings of the bank at every token."""
        raise NotImplementedError


def natural_phases(N: int) -> nn.Parameter:
    """Initial omega [N], linspace(-pi, pi): the first and the last are the same phase, as published."""
    return nn.Parameter(torch.linspace(-math.pi, math.pi, N))


def dropout(x: Tensor, p: float, noise: torch.Generator | None) -> Tensor:
    """Inverted dropout of any shape from the run's own generator, which the framework's own cannot use."""
    if noise is None or p == 0:
        return x
    return x * torch.empty_like(x).bernoulli_(1 - p, generator=noise).div_(1 - p)


class Block(nn.Module):
    """Pre-norm block: `h <- h + W_r bank(LayerNorm(h))`, then `h <- h + FFN(LayerNorm(h))`.

    v2's published block adds `bank(x) - x` of a bank that returns `x + W_r readings`: the same sum. Dropout
    follows the readout and the FFN.
    """

    def __init__(self, config: ModelConfig, bank: Bank) -> None:
        super().__init__()
        D = config.hidden
        self.dropout = config.dropout
        self.bank_norm = nn.LayerNorm(D)
        self.bank = bank
        self.readout = nn.Linear(bank.readings, D)
        self.ffn_norm = nn.LayerNorm(D)
        self.ffn = FFN(D, frugal=_spares_memory(config))

    def forward(self, h_BSD: Tensor, noise: torch.Generator | None) -> tuple[Tensor, Readings]:
        """[B, S, D] -> [B, S, D] and the bank's readings [B, S, F]."""
        # A phase in radians has no use for 8 bits of mantissa: the oscillators stay out of autocast.
        with torch.autocast(h_BSD.device.type, enabled=False):
            readings: Readings = self.bank(self.bank_norm(h_BSD), noise)
        h_BSD = h_BSD + dropout(self.readout(readings.values_BSF), self.dropout, noise)
        h_BSD = h_BSD + dropout(self.ffn(self.ffn_norm(h_BSD)), self.dropout, noise)
        return h_BSD, readings


def _spares_memory(config: ModelConfig) -> bool:
    """Whether the head outweighs the blocks so far that their largest product can be made twice for less than 3 %."""
    blocks, head = 8 * config.layers * config.hidden, config.vocabulary  # multiplications of a token, in units of D
    return blocks / 2 < 0.03 * 3 * (blocks + head)


class KSSM(nn.Module):
    """A Kuramoto state-space model: embedding, L blocks, final norm, head tied to the embedding.

    Departure from the published form: the token embedding starts at std 0.02, not at the framework's N(0, 1), whose
    first loss is 60 to 140 nats with a tied head. `config.published` restores N(0, 1), and v3's noise in evaluation.

    Args:
        config: the shape.
        bank: makes the bank of one block.
    """

    def __init__(self, config: ModelConfig, bank: Callable[[ModelConfig], Bank]) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.positions = nn.Embedding(config.positions, config.hidden)
        self.blocks = nn.ModuleList(Block(config, bank(config)) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)
        nn.init.normal_(self.embedding.weight, std=1.0 if config.published else EMBEDDING_STD)
        nn.init.normal_(self.positions.weight, std=EMBEDDING_STD)

    def forward(self, tokens_BS: Tensor, noise: torch.Generator | None = None) -> Features:
        """Hidden states and what the oscillators did.

        Args:
            tokens_BS: token ids [B, S], S up to `config.positions`.
            noise: generator on the tokens' device for dropout and spread; None evaluates without either.

        Raises:
            BadUsage: the sequence is longer than the learned positions.
        """
        S = tokens_BS.shape[1]
        if self.config.positions < S:
            raise BadUsage(f"{S} tokens in a row, but the model has {self.config.positions} positions", "shorten them")
        tied = TiedWeight(self.embedding.weight)
        h_BSD = tied.lookup(tokens_BS) + self.positions.weight[:S]  # [B, S, D] + [S, D]
        h_BSD = dropout(h_BSD, self.config.dropout, noise)
        layers: list[Readings] = []
        for block in self.blocks:
            h_BSD, readings = block(h_BSD, noise)
            layers.append(readings)
        return _features(self.norm(h_BSD), layers, tied)

    def logits(self, hidden_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, V], by the embedding's own weights and no bias."""
        return F.linear(hidden_BSD, self.embedding.weight)

    def evaluation_noise(self, seed: int) -> torch.Generator | None:
        """What to pass as noise when evaluating: None, but a generator for v3 as published, which stays noisy."""
        if not (self.config.published and self.config.name == "v3"):
            return None
        return torch.Generator(self.embedding.weight.device).manual_seed(seed)


def _features(hidden_BSD: Tensor, layers: list[Readings], tied: TiedWeight) -> Features:
    order_parameter_LBS = torch.stack([layer.order_parameter_BS.detach() for layer in layers])
    u = [layer.u for layer in layers if layer.u is not None]
    determinant = [layer.determinant for layer in layers if layer.determinant is not None]
    return Features(
        hidden_BSD,
        order_parameter_L=order_parameter_LBS.mean((1, 2)),
        order_parameter_std=order_parameter_LBS.mean(0).std(correction=0),
        u_L=torch.stack(u) if u else None,
        determinant_L=torch.stack(determinant) if determinant else None,
        tied=tied,
    )
