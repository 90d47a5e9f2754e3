"""The token file: a header block of fixed size, then the tokens of training, then those of validation.

0        8 bytes   MAGIC
8        8 bytes   length of the facts, little-endian
16       32 bytes  sha256 of the facts
48       ...       the facts, JSON, padded with zeros to HEADER
HEADER   ...       training tokens, then validation tokens: uint16 or uint32, little-endian
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kssm.atomicfile import PrivateFile, reason, remedy
from kssm.entropies import bigram_entropy, unigram_cross_entropy, unigram_entropy
from kssm.errors import CorpusError

MAGIC = b"KSSMTOK1"
HEADER = 1 << 14
_PREFIX = 48
_BLOCK = 1 << 22

BIGRAM_TOKENS = 1 << 23

Tokens = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class PartFacts:
    """One part of a corpus: its tokens lie at `offset` bytes, and stand for `bytes` of text in `documents`."""

    tokens: int
    offset: int
    bytes: int
    documents: int


@dataclass(frozen=True, slots=True)
class CorpusFacts:
    """What is known of a corpus without reading it.

    Args:
        fingerprint: of the text, the tokenizer and the settings; equal means equal tokens.
        recipe: of the text and how the tokenizer was asked for; known before a tokenizer is learned.
        source: where the text came from, for people.
        tokenizer: its name, for people.
        tokenizer_fingerprint: hash of its JSON.
        vocabulary: V.
        end: the id after each document.
        split: "documents", or "tail" when the documents are too big to choose among: the last tenth of the text.
        dtype: "uint16" or "uint32".
        train: the part to learn from.
        validation: the part held out.
        unigram_entropy: nats per token, of the frequencies in the whole text.
        validation_cross_entropy: nats per token of validation under the frequencies of training (add-one).
        bigram_entropy: nats per token given the one before, in sample, of the first `bigram_tokens` of training.
        bigram_tokens: how many tokens that was counted on.
        sha256: of the tokens.
    """

    fingerprint: str
    recipe: str
    source: str
    tokenizer: str
    tokenizer_fingerprint: str
    vocabulary: int
    end: int
    split: str
    dtype: str
    train: PartFacts
    validation: PartFacts
    unigram_entropy: float
    validation_cross_entropy: float
    bigram_entropy: float
    bigram_tokens: int
    sha256: str

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> CorpusFacts:
        """The facts of a header; unknown ones are left out. Raises KeyError, TypeError, ValueError."""
        known = {name: facts[name] for name in cls.__slots__}
        for name, kind in _KINDS.items():
            if type(known[name]) is not kind:
                raise ValueError(f"{name} is {str(known[name])[:40]!r}")
        if known["dtype"] not in ("uint16", "uint32") or not 0 <= known["end"] < known["vocabulary"] <= 1 << 24:
            raise ValueError(f"{known['vocabulary']} tokens of type {known['dtype']!r}, the last one {known['end']}")
        parts = {name: PartFacts(**{key: _count(known[name][key]) for key in PartFacts.__slots__}) for name in PARTS}
        return cls(**{**known, **parts})


PARTS = ("train", "validation")
_KINDS: dict[str, type] = {
    **dict.fromkeys(("fingerprint", "recipe", "source", "tokenizer", "tokenizer_fingerprint", "split", "dtype"), str),
    **dict.fromkeys(("vocabulary", "end", "bigram_tokens"), int),
    **dict.fromkeys(("unigram_entropy", "validation_cross_entropy", "bigram_entropy"), float),
    "sha256": str,
}


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"a part of {str(value)[:40]!r} tokens, bytes or documents")
    return value


@dataclass(slots=True)
class _Tally:
    counts: NDArray[np.int64]
    bytes: int = 0
    documents: int = 0

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    def facts(self, offset: int) -> PartFacts:
        return PartFacts(self.tokens, offset, self.bytes, self.documents)


@dataclass(slots=True)
class TokenWriter:
    """Writes a token file front to back.

    Args:
        file: private until it is whole.
        later: a nameless file for the validation tokens, whose place is known only at the end.
        vocabulary: V.
    """

    file: PrivateFile
    later: BinaryIO
    vocabulary: int
    _tally: dict[str, _Tally] = field(init=False)
    _hash: Any = field(init=False, default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self._tally = {part: _Tally(np.zeros(self.vocabulary, dtype=np.int64)) for part in PARTS}
        self.file.write(bytes(HEADER))

    @property
    def dtype(self) -> str:
        """uint16 where the ids fit."""
        return "uint16" if self.vocabulary <= 1 << 16 else "uint32"

    def add(self, part: str, ids: NDArray[np.uint32], text_bytes: int, documents: int) -> None:
        """Append tokens to a part; they stand for so many bytes of text and openings of documents."""
        tally = self._tally[part]
        tally.counts += np.bincount(ids, minlength=self.vocabulary)
        tally.bytes += text_bytes
        tally.documents += documents
        data = ids.astype(np.dtype(self.dtype).newbyteorder("<")).tobytes()
        if part == "validation":
            self.later.write(data)
        else:
            self._append(data)

    def finish(self, **facts: Any) -> None:
        """Write the validation tokens and the header.

        Args:
            facts: those of CorpusFacts that the tokens do not tell.

        Raises:
            CorpusError: a part has fewer than two tokens, or the facts do not fit the header.
        """
        train, validation = (self._tally[part] for part in PARTS)
        if train.tokens < 2 or validation.tokens < 2:
            raise CorpusError("the text is too short to divide into training and validation", "add text")
        self.later.seek(0)
        while block := self.later.read(_BLOCK):
            self._append(block)
        width = np.dtype(self.dtype).itemsize
        first = self._first_tokens(min(train.tokens, BIGRAM_TOKENS), width)
        self._write_header(
            CorpusFacts(
                **facts,
                train=train.facts(HEADER),
                validation=validation.facts(HEADER + width * train.tokens),
                vocabulary=self.vocabulary,
                dtype=self.dtype,
                unigram_entropy=unigram_entropy(train.counts + validation.counts),
                validation_cross_entropy=unigram_cross_entropy(validation.counts, train.counts),
                bigram_entropy=bigram_entropy(first),
                bigram_tokens=len(first),
                sha256=self._hash.hexdigest(),
            )
        )

    def _append(self, data: bytes) -> None:
        self._hash.update(data)
        self.file.write(data)

    def _first_tokens(self, count: int, width: int) -> Tokens:
        data = os.pread(self.file.descriptor, count * width, HEADER)
        return np.frombuffer(data, dtype=f"<u{width}")

    def _write_header(self, facts: CorpusFacts) -> None:
        encoded = json.dumps(asdict(facts)).encode()
        if len(encoded) > HEADER - _PREFIX:
            raise CorpusError(f"the path of the text is too long: {facts.source[:60]}...", "move the text")
        digest = hashlib.sha256(encoded).digest()
        self.file.write_at(0, MAGIC + len(encoded).to_bytes(8, "little") + digest + encoded)


def read_facts(path: Path) -> CorpusFacts:
    """The facts of a token file, from its header alone.

    Raises:
        CorpusError: unreadable, not a token file, or damaged.
    """
    try:
        with path.open("rb") as stream:
            return _read_header(stream, path)
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {reason(error)}", remedy(error)) from error


def map_tokens(path: Path, each: Callable[[], None] = lambda: None) -> tuple[CorpusFacts, Tokens, Tokens]:
    """Open a token file whose every byte is as it was written.

    Args:
        path: the file.
        each: called before each block of 4 MiB is read; what it raises ends the reading.

    Returns:
        Its facts, the training tokens [n], and the validation tokens [m], both memory-mapped and read-only.

    Raises:
        CorpusError: unreadable, not a token file, or damaged.
    """
    try:
        with path.open("rb") as stream:
            facts = _read_header(stream, path)
            dtype = np.dtype(facts.dtype).newbyteorder("<")
            _verify(stream, path, facts, dtype, each)
            shape = (facts.train.tokens + facts.validation.tokens,)
            tokens = np.memmap(stream, dtype=dtype, mode="r", offset=HEADER, shape=shape)
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {reason(error)}", remedy(error)) from error
    return facts, tokens[: facts.train.tokens], tokens[facts.train.tokens :]


def _verify(stream: BinaryIO, path: Path, facts: CorpusFacts, dtype: np.dtype[Any], each: Callable[[], None]) -> None:
    """Raise CorpusError unless the tokens are those that were written, and each is one that the vocabulary has.

    However large the file: the text that it was made of is read at each start too, and takes longer.
    """
    stream.seek(HEADER)
    seen, largest = hashlib.sha256(), 0
    while block := stream.read(_BLOCK):
        each()
        seen.update(block)
        largest = max(largest, int(np.frombuffer(block, dtype=dtype).max()))
    if seen.hexdigest() != facts.sha256:
        raise _damaged(path, "its tokens do not match their checksum")
    if largest >= facts.vocabulary:  # the embedding would end the run with an index that it does not have
        raise _damaged(path, f"it has a token {largest}, and its vocabulary ends before {facts.vocabulary}")


def _read_header(stream: BinaryIO, path: Path) -> CorpusFacts:
    header = stream.read(HEADER)
    if header[: len(MAGIC)] != MAGIC:
        raise _damaged(path, "it does not begin like a token file")
    length = int.from_bytes(header[8:16], "little")
    encoded = header[_PREFIX : _PREFIX + length]
    if hashlib.sha256(encoded).digest() != header[16:_PREFIX] or header[_PREFIX + length :].strip(b"\0"):
        raise _damaged(path, "its header does not match its checksum")
    try:
        facts = CorpusFacts.from_json(json.loads(encoded))
        width = np.dtype(facts.dtype).itemsize
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is of another version ({error})") from error
    offsets = (facts.train.offset, facts.validation.offset)
    if offsets != (HEADER, HEADER + width * facts.train.tokens) or min(facts.train.tokens, facts.validation.tokens) < 2:
        raise _damaged(path, "its parts do not follow each other")
    wanted = facts.validation.offset + width * facts.validation.tokens
    size = os.fstat(stream.fileno()).st_size
    if size != wanted:
        raise _damaged(path, f"it has {size} bytes instead of {wanted}")
    return facts


def _damaged(path: Path, what: str) -> CorpusError:
    return CorpusError(f"{path} is damaged: {what}", "delete it; it is made again from the text")
