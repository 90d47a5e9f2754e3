"""Which text is for training and which for validation: whole documents, chosen by their content.

The choice falls on buckets of documents, by the first 16 bits of each document's hash: equal documents never stand
on both sides, a new document moves no other one, and the memory needed does not grow with the text.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kssm.errors import CorpusError
from kssm.texts import Piece, cut_before

Part = Literal["train", "validation"]

# A piece, whether it is its document's first, and the document's bucket once that has ended.
_Followed = Iterator[tuple[Piece, bool, int | None]]

BUCKETS = 1 << 16
_WANTED, _MOST, _LEAST = 0.10, 0.15, 0.05


@dataclass(frozen=True, slots=True)
class Survey:
    """What one reading of the whole text tells.

    Args:
        digest: hash of every document, in order.
        bytes: of text.
        documents: how many.
        weights: [BUCKETS], bytes of text per bucket.
        long: buckets of the documents of more than one piece, in order; their hash is not known while they are read.
    """

    digest: str
    bytes: int
    documents: int
    weights: NDArray[np.int64]
    long: array[int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ByDocument:
    """Validation is every document of these buckets."""

    buckets: frozenset[int]


@dataclass(frozen=True, slots=True)
class Tail:
    """Validation is the text from this byte on."""

    start: int


@dataclass(frozen=True, slots=True)
class Allotted:
    """A piece and its part; opens: the first piece of its document in that part."""

    part: Part
    piece: Piece
    opens: bool


class _Digests:
    """Hashes a stream of pieces, per document and as a whole."""

    def __init__(self) -> None:
        self._whole = hashlib.blake2b(digest_size=32)

    def follow(self, pieces: Iterable[Piece]) -> _Followed:
        document, first = hashlib.blake2b(digest_size=32), True
        for piece in pieces:
            document.update(piece.data)
            if not piece.last:
                yield piece, first, None
                first = False
                continue
            digest = document.digest()
            self._whole.update(digest)
            yield piece, first, int.from_bytes(digest[:2])
            document, first = hashlib.blake2b(digest_size=32), True

    @property
    def whole(self) -> str:
        return self._whole.hexdigest()


def survey(pieces: Iterable[Piece]) -> Survey:
    """Read the text once.

    Raises:
        CorpusError: there is no text in it.
    """
    digests, weights, long = _Digests(), np.zeros(BUCKETS, dtype=np.int64), array("H")
    size = documents = 0
    for piece, first, bucket in digests.follow(pieces):
        size += len(piece.data)
        if bucket is not None:
            weights[bucket] += size
            size = 0
            documents += 1
            if not first:
                long.append(bucket)
    if not documents:
        raise CorpusError("the corpus is empty: its files hold no text", "put text there, or name another source")
    return Survey(digests.whole, int(weights.sum()), documents, weights, long)


def divide(seen: Survey) -> ByDocument | Tail:
    """Choose about a tenth of the text for validation: whole documents, or the text's end where those are too big."""
    chosen: set[int] = set()
    held_out = 0
    for bucket in np.flatnonzero(seen.weights).tolist():
        weight = int(seen.weights[bucket])
        if held_out + weight <= _MOST * seen.bytes:
            chosen.add(bucket)
            held_out += weight
        if held_out >= _WANTED * seen.bytes:
            break
    if held_out < _LEAST * seen.bytes:
        return Tail(round((1 - _WANTED) * seen.bytes))
    return ByDocument(frozenset(chosen))


def allot(pieces: Iterable[Piece], seen: Survey, plan: ByDocument | Tail) -> Iterator[Allotted]:
    """The text again, each piece with its part.

    Raises:
        CorpusError: the text is not the one surveyed.
    """
    digests = _Digests()
    followed = digests.follow(pieces)
    yield from _by_document(followed, seen, plan) if isinstance(plan, ByDocument) else _tail(followed, seen, plan)
    if digests.whole != seen.digest:
        raise _changed()


def _changed() -> CorpusError:
    return CorpusError("the text changed while it was read", "start again when nothing writes to it")


def _by_document(followed: _Followed, seen: Survey, plan: ByDocument) -> Iterator[Allotted]:
    long, part = iter(seen.long), _TRAIN
    for piece, first, bucket in followed:
        if first:
            known = next(long, None) if bucket is None else bucket
            if known is None:
                raise _changed()
            part = _VALIDATION if known in plan.buckets else _TRAIN
        yield Allotted(part, piece, first)


def _tail(followed: _Followed, seen: Survey, plan: Tail) -> Iterator[Allotted]:
    position, held_out = 0, False
    for piece, first, _ in followed:
        limit = plan.start - position
        position += len(piece.data)
        if held_out or limit >= len(piece.data):
            yield Allotted(_VALIDATION if held_out else _TRAIN, piece, first)
            continue
        # A line's end is worth moving the border for, but not by more than another tenth of the text.
        cut = cut_before(piece.data, limit, max(limit - round(_WANTED * seen.bytes), 0)) if limit else 0
        held_out = True
        if cut:
            yield Allotted(_TRAIN, Piece(piece.data[:cut], last=False), first)
        yield Allotted(_VALIDATION, Piece(piece.data[cut:], piece.last), opens=True)


_TRAIN: Part = "train"
_VALIDATION: Part = "validation"
