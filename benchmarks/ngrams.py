"""What tables of n-grams predict of a held-out text: the marks that counting alone sets for a language model.

Order m predicts a token from the m - 1 before it. Its table gives, for a context h seen with the tokens w in counts c,

    p_m(w | h) = max(c(h w) - d(c), 0) / C(h) + D(h) / C(h) * p_{m-1}(w | h without its first token)

with C(h) the sum of the counts and D(h) that of the discounts; a context never seen leaves p_{m-1}; p_0 is uniform.
Two ways to count and to discount: `absolute`, as often as it occurs and 0.75 each; `kneser-ney`, the modified form of
Chen and Goodman (1998), whose lower orders count how many different tokens come before, with three discounts per order
from the counts of counts. Everything is counted on the training part alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Smoothing = Literal["absolute", "kneser-ney"]

_DISCOUNT = 0.75


@dataclass(frozen=True, slots=True)
class Found:
    """What the tables up to an order predict.

    Args:
        smoothing: how they were counted and discounted.
        order: tokens of the longest n-gram.
        loss: cross-entropy of the held-out text, nats per token.
        counts: numbers that the tables keep, of all orders together.
    """

    smoothing: str
    order: int
    loss: float
    counts: int


def predicted(
    train: NDArray[np.integer],
    held_out: NDArray[np.integer],
    vocabulary: int,
    orders: Sequence[int],
    smoothing: Smoothing,
) -> list[Found]:
    """The loss of a text under the tables of another, for several longest orders.

    Args:
        train: [n], counted.
        held_out: [m], predicted; its first tokens have the end of `train` as their context.
        vocabulary: V; V to the longest order is below 2^63.
        orders: longest n-grams.
        smoothing: how to count and to discount.
    """
    return [_predicted(train, held_out, vocabulary, order, smoothing) for order in orders]


def _predicted(
    train: NDArray[np.integer], held_out: NDArray[np.integer], vocabulary: int, order: int, smoothing: Smoothing
) -> Found:
    before = train[len(train) - order + 1 :]
    text = np.concatenate((before, held_out)).astype(np.int64)
    chance, kept = np.full(len(held_out), 1 / vocabulary), 0
    for m in range(1, order + 1):
        grams, counts = _counted(train, vocabulary, m, whole=smoothing == "absolute" or m == order)
        discounts = np.array([0, *[_DISCOUNT] * 3]) if smoothing == "absolute" else _discounts(counts)
        chance = _refined(chance, _grams(text, vocabulary, m)[-len(held_out) :], grams, counts, discounts, vocabulary)
        kept += len(grams)
    return Found(smoothing, order, float(-np.log(chance).mean()), kept)


def _grams(tokens: NDArray[np.integer], vocabulary: int, m: int) -> NDArray[np.int64]:
    """Each m tokens in a row as one number, the last token its lowest digit."""
    count = len(tokens) - m + 1
    numbers = np.zeros(count, dtype=np.int64)
    for place in range(m):
        numbers = numbers * vocabulary + tokens[place : place + count]
    return numbers


def _counted(
    train: NDArray[np.integer], vocabulary: int, m: int, *, whole: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The m-grams in order and their counts: how often, or, if not whole, after how many different tokens."""
    if whole:
        return np.unique(_grams(train, vocabulary, m), return_counts=True)
    return np.unique(np.unique(_grams(train, vocabulary, m + 1)) % vocabulary**m, return_counts=True)


def _discounts(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Discounts of counts 0, 1, 2 and above; a half where the counts of counts cannot tell."""
    once, twice, thrice, four = (int((counts == times).sum()) for times in (1, 2, 3, 4))
    if not (once and twice and thrice):
        return np.array([0, 0.5, 0.5, 0.5])
    share = once / (once + 2 * twice)
    told = [0, 1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice, 3 - 4 * share * four / thrice]
    return np.clip(told, 0, None)


def _refined(
    chance: NDArray[np.float64],
    asked: NDArray[np.int64],
    grams: NDArray[np.int64],
    counts: NDArray[np.int64],
    discounts: NDArray[np.float64],
    vocabulary: int,
) -> NDArray[np.float64]:
    """p_m of each m-gram asked for, from its p_{m-1}."""
    contexts, first = np.unique(grams // vocabulary, return_index=True)
    taken = discounts[np.minimum(counts, 3)]
    totals, masses = np.add.reduceat(counts, first), np.add.reduceat(taken, first)
    at, seen = _places(grams, asked)
    count = np.where(seen, counts[at], 0)
    context, known = _places(contexts, asked // vocabulary)
    own = np.maximum(count - discounts[np.minimum(count, 3)], 0)
    return np.where(known, (own + masses[context] * chance) / totals[context], chance)


def _places(sorted_numbers: NDArray[np.int64], asked: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    at = np.minimum(np.searchsorted(sorted_numbers, asked), len(sorted_numbers) - 1)
    return at, sorted_numbers[at] == asked
