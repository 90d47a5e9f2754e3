"""What the published models v2 and v3 share: positions, blocks, norms; each brings its own bank of oscillators.

Config -> KSSM -> Block -> Bank. Symbols stand in `kssm.oscillators`; a suffix names a tensor's axes: B batch,
S position, D hidden, N oscillators, H harmonics, L layers, V vocabulary, F readings of a bank.

Neither v2 nor v3 mixes positions: a logit depends on its own token and position alone. They are position-aware
bigram models, and the bigram entropy of the text is what their loss can hope for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kssm.config import ModelConfig
from kssm.errors import BadUsage
from kssm.feedforward import FFN
from kssm.intervention import Intervening
from kssm.language_model import EMBEDDING_STD, Features, LanguageModel, State, dropout
from kssm.tied import TiedWeight


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


class Bank(nn.Module):
    """A bank of oscillators: normed hidden state in, readings out; `readings` (F) is how many per token.

    Attributes:
        intervention: what is set in the place of its own coupling or phases; None outside `intervening`.
    """

    readings: int
    intervention: Intervening | None = None

    def forward(self, x_BSD: Tensor, noise: torch.Generator | None) -> Readings:
        """Readings of the bank at every token."""
        raise NotImplementedError


def natural_phases(N: int) -> nn.Parameter:
    """Initial omega [N], linspace(-pi, pi): the first and the last are the same phase, as published."""
    return nn.Parameter(torch.linspace(-math.pi, math.pi, N))


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


class KSSM(LanguageModel):
    """A published Kuramoto state-space model: embedding, L blocks, final norm, head tied to the embedding.

    Args:
        config: the shape.
        bank: makes the bank of one block.
    """

    def __init__(self, config: ModelConfig, bank: Callable[[ModelConfig], Bank]) -> None:
        super().__init__(config)
        self.positions = nn.Embedding(config.positions, config.hidden)
        self.blocks = nn.ModuleList(Block(config, bank(config)) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)
        nn.init.normal_(self.embedding.weight, std=1.0 if config.published else EMBEDDING_STD)
        nn.init.normal_(self.positions.weight, std=EMBEDDING_STD)

    def forward(
        self,
        tokens_BS: Tensor,
        noise: torch.Generator | None = None,
        state: State | None = None,  # noqa: ARG002
    ) -> Features:
        """See `LanguageModel`; it has no memory, so the state is not looked at.

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
