"""The order of the data as a pure function of the tokens, the seed and the step.

A pass over the text (an epoch) visits windows side by side, each once, in an order that a keyed permutation gives
for one index at a time: nothing is shuffled in memory, nothing is kept, and step ten million costs what step ten does.
Each epoch has its own permutation and shifts the windows' borders, so that no border stays where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from kssm.config import TrainConfig
from kssm.errors import CorpusError
from kssm.tokenfile import Tokens

Batch = NDArray[np.int64]
_Words = NDArray[np.uint64]

# Any number of rounds gives a permutation, but few of them a visibly ordered one.
_ROUNDS = 6


def batch_at(tokens: Tokens, *, seed: int, step: int, rows: int, length: int) -> Batch:
    """The batch of one optimizer step; micro-batches are slices of its rows.

    Args:
        tokens: [n], the training part.
        seed: of the order, in [0, 2^63).
        step: from 0 on.
        rows: windows per step.
        length: S, tokens predicted per window.

    Returns:
        [rows, length + 1]: each window's tokens and the one after.

    Raises:
        CorpusError: the text is shorter than one window.
    """
    windows, slack = _windows(len(tokens), length)
    # Python's integers: step * rows may pass 2^63 long before either does.
    visits = [divmod(index, windows) for index in range(step * rows, (step + 1) * rows)]
    starts = np.empty(rows, dtype=np.int64)
    for epoch in range(visits[0][0], visits[-1][0] + 1):
        here = [row for row, (of, _) in enumerate(visits) if of == epoch]
        places = np.array([visits[row][1] for row in here], dtype=np.uint64)
        *keys, shift = _keys(seed, epoch)
        starts[here] = permuted(places, windows, keys).astype(np.int64) * length + shift % (slack + 1)
    return _gather(tokens, starts, length)


def in_order(tokens: Tokens, training: TrainConfig) -> Callable[[int], Batch]:
    """The batch of each step of a run."""
    at = carried_batch_at if training.carry_state else batch_at
    rows, length, seed = training.rows, training.seq_length, training.seed
    return lambda step: at(tokens, seed=seed, step=step, rows=rows, length=length)


def carried_batch_at(tokens: Tokens, *, seed: int, step: int, rows: int, length: int) -> Batch:
    """The batch of one step where each row goes on where the step before left it.

    The text is cut into as many stretches as there are rows, and each row reads its own from end to end; then all
    begin anew, with borders shifted by another amount.

    Args:
        tokens: [n], the training part.
        seed: of the order, in [0, 2^63).
        step: from 0 on.
        rows: windows per step.
        length: S, tokens predicted per window.

    Returns:
        [rows, length + 1]: each window's tokens and the one after.

    Raises:
        CorpusError: the text is shorter than one window for each row.
    """
    steps, slack, stretch = _stretches(len(tokens), rows, length)
    epoch, place = divmod(step, steps)
    shift = _keys(seed, epoch)[-1] % (slack + 1)
    return _gather(tokens, np.arange(rows, dtype=np.int64) * stretch + shift + place * length, length)


def carried_begins(count: int, *, step: int, rows: int, length: int) -> bool:
    """Whether the rows of `carried_batch_at` begin anew at a step; count is the tokens of the training part."""
    return step % _stretches(count, rows, length)[0] == 0


def _stretches(tokens: int, rows: int, length: int) -> tuple[int, int, int]:
    """Steps of an epoch, the greatest shift, and the tokens from one row's stretch to the next."""
    stretch = (tokens - 1) // rows
    if stretch < length:
        raise CorpusError(
            f"a part of the text has {tokens} tokens; {rows} rows that read their own stretch of it in windows of "
            f"{length} need {rows * length + 1}",
            "add text, use a smaller --seq-length or --batch-size, or leave --carry-state out",
        )
    steps = max((stretch - length) // length, 1)
    return steps, min(stretch - steps * length, length - 1), stretch


def require_enough(train: int, validation: int, training: TrainConfig) -> None:
    """Raise CorpusError where a part of a text, of so many tokens, is too short to be trained or evaluated on so."""
    if training.carry_state:
        _stretches(train, training.rows, training.seq_length)
    else:
        _windows(train, training.seq_length)
    _windows(validation, training.seq_length)


def validation_batches(tokens: Tokens, *, count: int, rows: int, length: int) -> list[Batch]:
    """The same windows at every evaluation, evenly spread over the text.

    Args:
        tokens: [n], the validation part.
        count: batches.
        rows: windows per batch.
        length: S, tokens predicted per window.

    Returns:
        count batches [rows, length + 1]; windows overlap where the text is short.

    Raises:
        CorpusError: the text is shorter than one window.
    """
    _windows(len(tokens), length)
    last, total = len(tokens) - length - 1, count * rows
    starts = np.array([last * index // max(total - 1, 1) for index in range(total)], dtype=np.int64)
    return [_gather(tokens, starts[first : first + rows], length) for first in range(0, total, rows)]


def stream(tokens: Tokens, *, length: int) -> Iterator[Batch]:
    """The text from its first token to its last, in blocks that go on from each other.

    Args:
        tokens: [n], 2 or more.
        length: S, tokens predicted per block.

    Yields:
        [1, length + 1]; the last one may be shorter.
    """
    for first in range(0, len(tokens) - 1, length):
        yield np.asarray(tokens[first : first + length + 1], dtype=np.int64)[None]


def batch_digest(batch: Batch) -> str:
    """Twelve hexadecimal digits that two equal batches share, for the receipt of a resume."""
    return hashlib.blake2b(batch.astype("<i8").tobytes(), digest_size=6).hexdigest()


def permuted(places: _Words, size: int, keys: list[int]) -> _Words:
    """Where a keyed permutation of range(size) puts some places.

    Args:
        places: [k], each below size.
        size: at most 2^62.
        keys: one number below 2^64 per round.

    Returns:
        [k], each below size; the images of all places are all places.
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    images = _feistel(places, half, keys)
    # Cycle-walking: the network permutes up to 4 * size numbers; from one outside the range it is asked again.
    while (outside := images >= size).any():
        images[outside] = _feistel(images[outside], half, keys)
    return images


def _feistel(values: _Words, half: int, keys: list[int]) -> _Words:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ np.uint64(key)) & mask)
    return (left << bits) | right


def _mixed(words: _Words) -> _Words:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014); arrays of uint64 wrap around, as it needs."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _keys(seed: int, epoch: int) -> list[int]:
    """One key per round and one number for the shift."""
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=64).digest()
    return [int.from_bytes(digest[first : first + 8], "little") for first in range(0, 8 * (_ROUNDS + 1), 8)]


def _windows(tokens: int, length: int) -> tuple[int, int]:
    """How many windows an epoch has, the same at every shift, and the greatest shift."""
    if tokens < length + 1:
        raise CorpusError(
            f"a part of the text has {tokens} tokens; a window needs {length + 1}",
            "add text, or use a smaller --seq-length",
        )
    windows = max((tokens - length) // length, 1)
    return windows, min(tokens - 1 - windows * length, length - 1)


def _gather(tokens: Tokens, starts: NDArray[np.int64], length: int) -> Batch:
    plain = np.asarray(tokens)  # a slice of a memmap costs ten times a slice of an array
    batch = np.empty((len(starts), length + 1), dtype=np.int64)
    for row, start in enumerate(starts.tolist()):
        batch[row] = plain[start : start + length + 1]
    return batch
