"""What every model here is to its trainer: tokens in, features out, a head tied to its embedding.

`noise` is the generator of everything random in a forward pass. None means evaluation: no dropout, no spread of the
phases. There is no training mode beside it.

A model with memory takes the state in which an earlier text left it and gives back the one after this text; one
without takes none and gives none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor, nn

from kssm.config import ModelConfig
from kssm.tied import TiedWeight

EMBEDDING_STD = 0.02

State = tuple[tuple[Tensor, ...], ...]
"""What each block remembers; the first axis of every tensor is B."""


def dropout(x: Tensor, p: float, noise: torch.Generator | None) -> Tensor:
    """Inverted dropout of any shape from the run's own generator, which the framework's own cannot use."""
    if noise is None or p == 0:
        return x
    return x * torch.empty_like(x).bernoulli_(1 - p, generator=noise).div_(1 - p)


class Features(NamedTuple):
    """What a model computes from tokens, short of the logits.

    Args:
        hidden_BSD: the normed last hidden state, for `LanguageModel.logits`.
        order_parameter_L: R of each layer of oscillators, mean over the tokens; carries no gradient.
        order_parameter_std: standard deviation over the tokens of the layers' mean R; carries no gradient.
        tied: embedding and head of this pass, for the loss.
        u_L: mean u of each layer, with gradient; v3 alone has it.
        determinant_L: mean |Delta| of each layer, with gradient; v3 alone has it.
        coupling_L: mean k of each layer; carries no gradient; v4 alone has it.
        state: where the next text goes on; None for a model without memory.
    """

    hidden_BSD: Tensor
    order_parameter_L: Tensor
    order_parameter_std: Tensor
    tied: TiedWeight
    u_L: Tensor | None = None
    determinant_L: Tensor | None = None
    coupling_L: Tensor | None = None
    state: State | None = None


class LanguageModel(nn.Module):
    """A model of the next token.

    Departure of v2 and v3 from their published form: the token embedding starts at std 0.02, not at the framework's
    N(0, 1), whose first loss is 60 to 140 nats with a tied head; `config.published` restores N(0, 1).

    Args:
        config: the shape.

    Attributes:
        remembers: whether it has a state that goes from text to text.
    """

    remembers = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)

    def forward(self, tokens_BS: Tensor, noise: torch.Generator | None = None, state: State | None = None) -> Features:
        """Hidden states and what the oscillators did.

        Args:
            tokens_BS: token ids [B, S].
            noise: generator on the tokens' device for all that is random; None evaluates.
            state: where an earlier text left the model; None at the beginning of one.
        """
        raise NotImplementedError

    def logits(self, hidden_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, V], by the embedding's own weights and no bias."""
        return F.linear(hidden_BSD, self.embedding.weight)

    def evaluation_noise(self, seed: int) -> torch.Generator | None:
        """What to pass as noise when evaluating: None, but a generator for v3 as published, which stays noisy."""
        if not (self.config.published and self.config.name == "v3"):
            return None
        return torch.Generator(self.embedding.weight.device).manual_seed(seed)
