"""Tokenizers: text to token ids and back, each with an id that ends a document.

Four choices: byte pairs learned from the corpus, plain bytes, a tokenizer file, or an encoding of tiktoken whose
ranks are already on this machine. Nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kssm.atomicfile import reason, remedy
from kssm.config import byte_pairs
from kssm.errors import BadUsage, CorpusError
from kssm.words import WordTable, as_array, cuts_alike

END = "<|end|>"
LARGEST = 1 << 24
"""The most ids that a vocabulary may have."""

DEFAULT_PAIRS = 8192

# No stop is answered while pairs are merged: a second or two on this much prose, a quarter of a minute on noise.
SAMPLE = 1 << 23

_KNOWN_ENDS = (END, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_CHOICES = "choose bpe, bpe:SIZE, bytes, tiktoken:NAME or the path of a tokenizer's .json file"

# From so many cores on, the tokenizers library on all of them is faster than one core that looks words up.
_MANY_CORES = 5

# tiktoken would delete and download a ranks file that does not match, so it is checked before tiktoken sees it.
_RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
_RANKS_SHA256 = {
    "r50k_base": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "p50k_base": "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}


class Vocabulary(ABC):
    """A tokenizer.

    Args:
        name: for people.
        size: V; every id is below it.
        end: the id that ends a document.
        document: the JSON that `load` makes the same tokenizer from.
    """

    def __init__(self, name: str, size: int, end: int, document: str) -> None:
        self.name = name
        self.size = size
        self.end = end
        self.document = document

    @property
    def fingerprint(self) -> str:
        """Hash of the tokenizer's JSON."""
        return hashlib.sha256(self.document.encode()).hexdigest()

    @property
    def alone(self) -> bool:
        """Whether `encode_pieces` keeps the interpreter for itself: then no thread gains by running ahead of it."""
        return True

    @abstractmethod
    def encode_pieces(self, pieces: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text; no special token comes from text, and none is added."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, ends left out; bytes that are no whole character become U+FFFD."""


class Bytes(Vocabulary):
    """Ids 0..255 are the bytes of UTF-8, 256 ends a document."""

    def __init__(self) -> None:
        super().__init__("bytes", 257, 256, json.dumps({"kssm_vocabulary": "bytes"}))

    def encode_pieces(self, pieces: Sequence[str]) -> list[NDArray[np.uint32]]:
        """See Vocabulary."""
        return [np.frombuffer(piece.encode(), dtype=np.uint8).astype(np.uint32) for piece in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        """See Vocabulary."""
        return bytes(index for index in ids if index != self.end).decode(errors="replace")


class Pairs(Vocabulary):
    """A tokenizer of the tokenizers library.

    Args:
        document: its JSON; an end token is added where it has none.
    """

    def __init__(self, document: str, name: str = "") -> None:
        engine = Tokenizer.from_str(document)
        ids = engine.get_vocab(with_added_tokens=True)
        end = next((ids[known] for known in _KNOWN_ENDS if known in ids), None)
        if end is None:
            engine.add_special_tokens([END])
            ids, document = engine.get_vocab(with_added_tokens=True), engine.to_str()
            end = ids[END]
        # Text that happens to spell a special token is text; and nobody may pad or cut a document.
        engine.encode_special_tokens = True
        engine.no_padding()
        engine.no_truncation()
        self._engine = engine
        self._table = WordTable(self._encode) if cores() < _MANY_CORES and cuts_alike(json.loads(document)) else None
        size = max(ids.values()) + 1
        if size > LARGEST:  # whoever counts tokens or embeds them allocates for every id
            raise CorpusError(
                f"the tokenizer {name or 'of this text'} has an id {size - 1}; {LARGEST - 1} at most", _CHOICES
            )
        super().__init__(name or f"{size} {type(engine.model).__name__} tokens", size, end, document)

    @property
    def alone(self) -> bool:
        """See Vocabulary."""
        return self._table is not None

    def encode_pieces(self, pieces: Sequence[str]) -> list[NDArray[np.uint32]]:
        """See Vocabulary."""
        if self._table is not None:
            return self._table.encode_pieces(pieces)
        return [as_array(ids) for ids in self._encode(pieces)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in self._engine.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """See Vocabulary."""
        return str(self._engine.decode([int(index) for index in ids], skip_special_tokens=True))


class TiktokenRanks(Vocabulary):
    """An encoding of tiktoken.

    Args:
        name: one of tiktoken's.

    Raises:
        CorpusError: tiktoken or the ranks are not on this machine.
        BadUsage: no such encoding.
    """

    def __init__(self, name: str) -> None:
        name = "r50k_base" if name == "gpt2" else name
        _require_ranks(name)
        try:
            import tiktoken
        except ImportError:
            raise CorpusError("tiktoken is not installed", "pip install tiktoken") from None
        self._engine: Any = tiktoken.get_encoding(name)
        document = json.dumps({"kssm_vocabulary": "tiktoken", "name": name, "ranks_sha256": _RANKS_SHA256[name]})
        super().__init__(f"tiktoken {name}", self._engine.n_vocab, self._engine.eot_token, document)

    @property
    def alone(self) -> bool:
        """See Vocabulary."""
        return False

    def encode_pieces(self, pieces: Sequence[str]) -> list[NDArray[np.uint32]]:
        """See Vocabulary."""
        encoded = self._engine.encode_ordinary_batch(list(pieces), num_threads=cores())
        return [as_array(ids) for ids in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """See Vocabulary."""
        return str(self._engine.decode([int(index) for index in ids if index != self.end]))


@dataclass(frozen=True, slots=True)
class LearnPairs:
    """A vocabulary still to be learned from the text.

    Args:
        size: V, the end token and 256 bytes included.
    """

    size: int = DEFAULT_PAIRS

    @property
    def fingerprint(self) -> str:
        """What the outcome depends on beside the text."""
        return f"bpe:{self.size}:{SAMPLE}"

    def learn(self, pieces: Iterable[str], total: int) -> Vocabulary:
        """Learn byte pairs: the same text gives the same tokenizer.

        Args:
            pieces: the text; at most SAMPLE bytes of it, evenly spread, are looked at.
            total: about how many bytes that is.

        Raises:
            Exception: whatever the iteration over the pieces raises.
        """
        engine = Tokenizer(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.size,
            special_tokens=[END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        engine.train_from_iterator(_spread(pieces, min(1.0, SAMPLE / max(total, 1))), trainer)
        return Pairs(engine.to_str(), name=f"{engine.get_vocab_size()} byte pairs")


def choose(spec: str) -> Vocabulary | LearnPairs:
    """The tokenizer that a word on the command line means.

    Args:
        spec: bpe, bpe:SIZE, bytes, tiktoken:NAME, or the path of a tokenizer's .json file.

    Raises:
        BadUsage: none of these.
        CorpusError: it is not on this machine, or damaged.
    """
    kind, _, argument = spec.partition(":")
    pairs = byte_pairs(spec, DEFAULT_PAIRS)
    if pairs is not None:
        return LearnPairs(pairs)
    if spec == "bytes":
        return Bytes()
    if kind == "tiktoken":
        return TiktokenRanks(argument)
    if spec.endswith(".json"):
        path = Path(spec)
        try:
            return load(path.read_text("utf-8"), spec)
        except OSError as error:
            raise CorpusError(f"cannot read the tokenizer {path}: {reason(error)}", remedy(error)) from error
        except UnicodeDecodeError:
            raise CorpusError(f"{path} is not a tokenizer", _CHOICES) from None
    raise BadUsage(f"{spec!r} names no tokenizer", _CHOICES)


def located(spec: str) -> str:
    """The word for a tokenizer as it means the same from everywhere: the path of a file absolute."""
    return str(Path(spec).absolute()) if spec.endswith(".json") and not spec.startswith("tiktoken:") else spec


def load(document: str, place: str) -> Vocabulary:
    """The tokenizer that a JSON document describes.

    Args:
        document: as in Vocabulary.document, or as the tokenizers library saves it.
        place: where it came from, for the message.

    Raises:
        CorpusError: it describes none, or one that is not on this machine.
    """
    try:
        facts = json.loads(document)
        kind = facts.get("kssm_vocabulary")
        if kind is None:
            return Pairs(document, f"the tokenizer {Path(place).name}")
        return TiktokenRanks(str(facts["name"])) if kind == "tiktoken" else Bytes()
    except CorpusError:
        raise
    except BaseException as error:
        # The tokenizers library raises Exception itself, and what its Rust did not foresee is a panic, which is none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CorpusError(f"{place} is not a tokenizer: {str(error)[:100]}", _CHOICES) from None


def cores() -> int:
    """How many cores this process may use."""
    # Only some systems tell what a process was confined to.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _spread(pieces: Iterable[str], share: float) -> Iterable[str]:
    position = taken = 0
    for piece in pieces:
        if taken <= position * share:
            taken += len(piece)
            yield piece
        position += len(piece)


def _require_ranks(name: str) -> None:
    if name not in _RANKS_SHA256:
        raise BadUsage(f"{name!r} is no encoding known here", f"choose one of {', '.join(sorted(_RANKS_SHA256))}")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR")
    if not folder:
        raise CorpusError(
            f"the ranks of {name} are not on this machine", "set TIKTOKEN_CACHE_DIR to the folder that holds them"
        )
    url = _RANKS_URL.format(name)
    path = Path(folder, hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest())
    try:
        sound = hashlib.sha256(path.read_bytes()).hexdigest() == _RANKS_SHA256[name]
    except OSError as error:
        raise CorpusError(
            f"cannot read the ranks of {name} at {path}: {reason(error)}", f"store {url} under that name"
        ) from error
    if not sound:
        raise CorpusError(f"the ranks of {name} at {path} are damaged", f"store {url} under that name")
