"""A corpus: text made into a token file once, and opened from then on.

The token file is found again by its recipe, a hash of the text and of how the tokenizer was asked for: one reading of
the text tells whether it is still the same. The name carries the fingerprint, a hash of the text and of the tokenizer
itself. A file under a final name is always whole, so two processes that prepare the same corpus end with the same file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kssm import tokenfile, vocabulary
from kssm.atomicfile import clear_dead, nameless, reason, remedy, replacing
from kssm.errors import CorpusError, Stopped
from kssm.parts import Allotted, ByDocument, Survey, Tail, allot, divide, survey
from kssm.texts import PIECE, Piece, TextSource, text_source
from kssm.tokenfile import PARTS, CorpusFacts, Tokens, TokenWriter
from kssm.vocabulary import LearnPairs, Vocabulary

Progress = Callable[[str, int, int], None]

# Raised when the same text and tokenizer begin to give other tokens.
_FORMAT = 1

# Enough text at a time to keep all cores busy, little enough to keep the memory small.
_GROUP = max(1 << 20, 2 * PIECE * vocabulary.cores())
_AHEAD = 2


@dataclass(frozen=True)
class Corpus:
    """An open token file.

    Args:
        path: of the token file.
        facts: what its header tells.
        train: token ids [n], memory-mapped, read-only.
        validation: token ids [m], likewise.
        document: the tokenizer's JSON.
    """

    path: Path
    facts: CorpusFacts
    train: Tokens
    validation: Tokens
    document: str

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean equal tokens."""
        return self.facts.fingerprint

    @property
    def vocabulary(self) -> int:
        """V; every token id is below it."""
        return self.facts.vocabulary

    def tokenizer(self) -> Vocabulary:
        """The tokenizer, loaded when first asked for; raises CorpusError where it is not on this machine."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Vocabulary:
        return vocabulary.load(self.document, str(_tokenizer_path(self.path)))


@dataclass(frozen=True, slots=True)
class _Watch:
    """Who is asked for a stop and told of progress, between pieces of text."""

    should_stop: Callable[[], bool]
    progress: Progress

    def pieces(self, source: TextSource, phase: str, total: int) -> Iterator[Piece]:
        done = 0
        for piece in source.pieces():
            if self.should_stop():
                raise Stopped
            yield piece
            done += len(piece.data)
            self.progress(phase, min(done, total), total)


def prepare(
    source: str | Path | None,
    cache_dir: Path,
    vocabulary_spec: str = "bpe",
    *,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda _phase, _done, _total: None,
    report: Callable[[str], None] = lambda _message: None,
) -> Corpus:
    """The corpus of a text: found again when nothing changed, else made.

    Args:
        source: a .txt file, a .jsonl file, a folder of such files, or None for the embedded plays.
        cache_dir: where token files lie; made when missing.
        vocabulary_spec: bpe, bpe:SIZE, bytes, tiktoken:NAME, or the path of a tokenizer's .json file.
        should_stop: asked between pieces of text.
        progress: told a phase ("reading", "learning", "tokenizing"), bytes done and bytes in all.
        report: told in a line what a person should know, such as a damaged file that is made again.

    Raises:
        CorpusError: the text, the tokenizer or the disk does not allow it.
        BadUsage: no such tokenizer.
        Stopped: should_stop said so; no torn file is left.
    """
    text, watch = text_source(source), _Watch(should_stop, progress)
    wanted = vocabulary.choose(vocabulary_spec)
    seen = survey(watch.pieces(text, "reading", text.size))
    recipe = _hash(f"format {_FORMAT}", seen.digest, wanted.fingerprint)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        clear_dead(cache_dir, rf"{re.escape(text.name)}-[0-9a-f]{{12}}\.(?:tokens|tokenizer\.json)")
        found = _find(cache_dir, text.name, recipe, report, should_stop)
        return found or _make(cache_dir, text, seen, recipe, wanted, watch)
    except OSError as error:
        place = error.filename or cache_dir
        raise CorpusError(f"cannot write the token file at {place}: {reason(error)}", remedy(error)) from error


def open_corpus(path: Path, should_stop: Callable[[], bool] = lambda: False) -> Corpus:
    """Open a token file that `prepare` made.

    Args:
        path: the file.
        should_stop: asked between blocks.

    Raises:
        CorpusError: it or its tokenizer is missing, unreadable or damaged.
        Stopped: should_stop said so.
    """

    def go_on() -> None:
        if should_stop():
            raise Stopped

    facts, train, validation = tokenfile.map_tokens(path, go_on)
    beside = _tokenizer_path(path)
    try:
        document = beside.read_bytes()
    except OSError as error:
        raise CorpusError(f"cannot read {beside}: {reason(error)}", "prepare the corpus again") from error
    if hashlib.sha256(document).hexdigest() != facts.tokenizer_fingerprint:
        raise CorpusError(f"{beside} is not the tokenizer of {path.name}", "prepare the corpus again")
    try:
        return Corpus(path, facts, train, validation, document.decode())
    except UnicodeDecodeError:
        raise CorpusError(f"{beside} is not a tokenizer", "prepare the corpus again") from None


def _tokenizer_path(path: Path) -> Path:
    return path.with_suffix(".tokenizer.json")


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _find(
    cache_dir: Path, name: str, recipe: str, report: Callable[[str], None], should_stop: Callable[[], bool]
) -> Corpus | None:
    pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}\.tokens")
    for path in sorted(cache_dir / found for found in os.listdir(cache_dir) if pattern.fullmatch(found)):
        try:
            if tokenfile.read_facts(path).recipe == recipe:
                return open_corpus(path, should_stop)
        except CorpusError as error:
            report(f"{error}; passed over")
    return None


def _make(
    cache_dir: Path, text: TextSource, seen: Survey, recipe: str, wanted: Vocabulary | LearnPairs, watch: _Watch
) -> Corpus:
    plan = divide(seen)
    tokenizer = wanted
    if isinstance(tokenizer, LearnPairs):
        learned_from = allot(watch.pieces(text, "learning", seen.bytes), seen, plan)
        tokenizer = tokenizer.learn((one.piece.text for one in learned_from if one.part == "train"), seen.bytes)
    fingerprint = _hash(f"format {_FORMAT}", seen.digest, tokenizer.fingerprint)
    path = cache_dir / f"{text.name}-{fingerprint[:12]}.tokens"
    # The tokenizer first: a token file under its final name always has its tokenizer beside it.
    with replacing(_tokenizer_path(path)) as file:
        file.write(tokenizer.document.encode())
    with replacing(path) as file, nameless(path) as later:
        writer = TokenWriter(file, later, tokenizer.size)
        pieces = allot(watch.pieces(text, "tokenizing", seen.bytes), seen, plan)
        for group, encoded in _encode(tokenizer, _groups(pieces)):
            _add(writer, tokenizer.end, group, encoded)
        writer.finish(
            fingerprint=fingerprint,
            recipe=recipe,
            source=text.where,
            tokenizer=tokenizer.name,
            tokenizer_fingerprint=tokenizer.fingerprint,
            end=tokenizer.end,
            split=_SPLITS[type(plan)],
        )
    return open_corpus(path, watch.should_stop)


_SPLITS: dict[type[ByDocument | Tail], str] = {ByDocument: "documents", Tail: "tail"}


_Group = list[Allotted]
_Encoded = list[NDArray[np.uint32]]


def _groups(allotted: Iterable[Allotted]) -> Iterator[_Group]:
    group: _Group = []
    size = 0
    for one in allotted:
        group.append(one)
        size += len(one.piece.data)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _encode(tokenizer: Vocabulary, groups: Iterable[_Group]) -> Iterator[tuple[_Group, _Encoded]]:
    """The groups in order with their ids; where that pays, encoded ahead while others are read, hashed and written."""

    def encode(group: _Group) -> tuple[_Group, _Encoded]:
        return group, tokenizer.encode_pieces([one.piece.text for one in group])

    if tokenizer.alone:
        yield from map(encode, groups)
        return
    # One thread turns ids into an array, which only one can do at a time, while the other's text keeps the cores busy.
    with ThreadPoolExecutor(_AHEAD) as threads:
        begun: deque[Future[tuple[_Group, _Encoded]]] = deque()
        for group in groups:
            begun.append(threads.submit(encode, group))
            if len(begun) > _AHEAD:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def _add(writer: TokenWriter, end: int, group: _Group, encoded: _Encoded) -> None:
    """Write a group, each part at once: counting costs the size of the vocabulary each time."""
    for part in PARTS:
        ids, size, documents = list[NDArray[np.uint32]](), 0, 0
        for one, its in zip(group, encoded, strict=True):
            if one.part == part:
                ids += [its, np.array([end], dtype=np.uint32)] if one.piece.last else [its]
                size += len(one.piece.data)
                documents += one.opens
        if ids:
            writer.add(part, np.concatenate(ids), size, documents)
