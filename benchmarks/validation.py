"""The loss of a model on a whole held-out text: in blocks that begin anew, or with the state carried through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kssm.language_model import State

_AT_ONCE = 8_192
"""Tokens in a forward pass."""


class Read(NamedTuple):
    """What a model makes of some rows.

    Args:
        loss: mean cross-entropy of their tokens, nats.
        order_parameter: R of each layer; empty for a model without oscillators.
        coupling: k of each layer; empty for a model without.
        state: where the rows left a model that remembers.
    """

    loss: Tensor
    order_parameter: Tensor
    coupling: Tensor
    state: State | None = None


Reader = Callable[[Tensor, State | None], Read]
"""From token ids [B, S + 1] and where an earlier text left the model."""


class Validation(NamedTuple):
    """Means over the tokens of a text.

    Args:
        loss: cross-entropy, nats per token.
        order_parameter: R of each layer.
        coupling: k of each layer.
        tokens: how many were predicted.
    """

    loss: float
    order_parameter: list[float]
    coupling: list[float]
    tokens: int


def in_blocks(read: Reader, tokens: NDArray[np.integer], length: int, every: int = 1) -> Validation:
    """Each block begins a text; the blocks lie side by side and cover everything, the last may be shorter.

    Args:
        read: the model.
        tokens: [n].
        length: of a block, tokens predicted.
        every: 1 for all blocks, n for every n-th.
    """
    return _mean((rows, read(rows, None)) for rows in _blocks(tokens, length, every))


def carried(read: Reader, tokens: NDArray[np.integer], length: int) -> Validation:
    """One text from end to end, read in blocks, each from the state in which the one before left the model."""
    return _mean(_through(read, tokens, length))


def _through(read: Reader, tokens: NDArray[np.integer], length: int) -> Iterator[tuple[Tensor, Read]]:
    state: State | None = None
    for first in range(0, len(tokens) - 1, length):
        rows = _rows(tokens[first : first + length + 1][None])
        found = read(rows, state)
        yield rows, found
        state = found.state


def _blocks(tokens: NDArray[np.integer], length: int, every: int) -> Iterator[Tensor]:
    whole = (len(tokens) - 1) // length
    starts = range(0, whole * length, every * length)
    at_once = max(1, _AT_ONCE // length)
    for first in range(0, len(starts), at_once):
        yield _rows(np.stack([tokens[at : at + length + 1] for at in starts[first : first + at_once]]))
    if whole * length < len(tokens) - 1 and whole % every == 0:
        yield _rows(tokens[whole * length :][None])


def _rows(tokens: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64))


def _mean(found: Iterator[tuple[Tensor, Read]]) -> Validation:
    loss, order_parameter, coupling, tokens = 0.0, torch.zeros(()), torch.zeros(()), 0
    with torch.inference_mode():
        for rows, read in found:
            count = rows.shape[0] * (rows.shape[1] - 1)
            loss += read.loss.item() * count
            order_parameter = order_parameter + read.order_parameter * count
            coupling = coupling + read.coupling * count
            tokens += count
    return Validation(loss / tokens, (order_parameter / tokens).tolist(), (coupling / tokens).tolist(), tokens)
