"""What counting alone can predict of a text, in nats per token: the marks that a model has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def unigram_entropy(counts: NDArray[np.int64]) -> float:
    """Entropy of the token frequencies.

    Args:
        counts: [V], how often each token occurs, at least one of them.
    """
    present = counts[counts > 0] / counts.sum()
    return float(-(present * np.log(present)).sum())


def unigram_cross_entropy(counts: NDArray[np.int64], known: NDArray[np.int64]) -> float:
    """Cross-entropy of a text under the frequencies of another, each count raised by one.

    Args:
        counts: [V], of the text that is predicted.
        known: [V], of the text that the prediction knows.
    """
    chance = (known + 1) / (known.sum() + len(known))
    return float(-(counts * np.log(chance)).sum() / counts.sum())


def bigram_entropy(tokens: NDArray[np.unsignedinteger]) -> float:
    """Entropy of a token given the one before, in the very text that was counted: optimistic for rare pairs.

    Args:
        tokens: [n], n >= 2, of 2 or 4 bytes each.
    """
    wide = np.dtype(np.uint32 if tokens.itemsize == 2 else np.uint64)
    pairs: NDArray[np.unsignedinteger] = tokens[:-1].astype(wide)
    pairs <<= wide.type(8 * wide.itemsize // 2)
    pairs |= tokens[1:]
    pairs.sort()
    return _entropy_of_sorted(pairs) - _entropy_of_sorted(np.sort(tokens[:-1]))


def _entropy_of_sorted(values: NDArray[np.unsignedinteger]) -> float:
    borders = np.flatnonzero(values[1:] != values[:-1]) + 1
    counts = np.diff(borders, prepend=0, append=len(values)).astype(np.int64)
    return unigram_entropy(counts)
