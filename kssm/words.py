"""Text encoded by looking its words up: for byte-level tokenizers, whose ids of a word do not depend on its neighbours.

Such a tokenizer first cuts text by a fixed pattern into contractions, letters, digits, marks and blanks, then encodes
each part alone. Where a part ends for certain, whatever stands around it, text may be cut beforehand, and what lies
between has the same ids wherever it stands. Most of a text is words met before: on a few cores a look in a table beats
encoding them again several times over.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]

# Where a part ends for certain: before blanks; between a letter and a mark or digit; between a mark or digit and a
# letter, but for the apostrophe of a contraction. Only letters of ASCII: what else is one is the tokenizer's to say.
# Blanks as Unicode has them: Python counts four separators (1c to 1f) among them, the tokenizers library does not.
_words = re.compile(
    r"""
      [^\S\x1c-\x1f]*+  [A-Za-z]++                  (?![^\x00-\x7f])
    | [^\S\x1c-\x1f]*+  [!-&(-@\[-`{-~]++           (?=[A-Za-z])
    | [^\S\x1c-\x1f]*+  [\S\x1c-\x1f]++
    | [^\S\x1c-\x1f]++
    """,
    re.VERBOSE,
).findall

# About 25 MB. A longer word is rarely met again, and a text without blanks is one word.
_MOST, _LONGEST = 1 << 17, 40

# With a larger share of new words than this, seen over so many words, encoding text as it stands is faster; for so many
# characters, since text changes.
_NEW, _JUDGED, _REST = 0.2, 1 << 17, 1 << 24


def cuts_alike(facts: dict[str, Any]) -> bool:
    """Whether a tokenizer cuts text as this module needs it.

    Args:
        facts: its JSON, as the tokenizers library saves it.
    """
    cut, model = facts.get("pre_tokenizer") or {}, facts["model"]
    return (
        not facts.get("normalizer")
        and (cut.get("type"), cut.get("add_prefix_space"), cut.get("use_regex", True)) == ("ByteLevel", False, True)
        and model.get("type") == "BPE"
        and not model.get("dropout")
        # Others are found in the midst of text before it is cut.
        and all(token["special"] for token in facts.get("added_tokens", ()))
    )


def as_array(ids: Sequence[int]) -> NDArray[np.uint32]:
    """The ids, [n]; several times faster than numpy makes an array of a list."""
    return np.frombuffer(array("I", ids), dtype=np.uintc).astype(np.uint32, copy=False)


class WordTable:
    """The ids of words met so far.

    Args:
        encode: the ids of each of some texts, by the tokenizer.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._known: dict[str, bytes] = {}
        self._asked = self._new = self._rest = 0

    def encode_pieces(self, pieces: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, those that `encode` gives."""
        if self._rest > 0:
            self._rest -= sum(map(len, pieces))
            return [as_array(ids) for ids in self._encode(pieces)]
        return [self._look_up(_words(piece)) for piece in pieces]

    def _look_up(self, words: list[str]) -> NDArray[np.uint32]:
        found: list[Any] = list(map(self._known.get, words))
        new = self._learn(words, found) if None in found else 0
        self._asked, self._new = self._asked + len(words), self._new + new
        if self._asked >= _JUDGED:
            self._rest = _REST if self._new > _NEW * self._asked else 0
            self._asked = self._new = 0
        return np.frombuffer(b"".join(found), dtype=np.uintc).astype(np.uint32, copy=False)

    def _learn(self, words: list[str], found: list[Any]) -> int:
        """Fill the gaps in `found`, remember what they were, and tell how many words that is."""
        gaps = [index for index, ids in enumerate(found) if ids is None]
        new = list({words[index]: None for index in gaps})
        fresh = {word: array("I", ids).tobytes() for word, ids in zip(new, self._encode(new), strict=True)}
        for index in gaps:
            found[index] = fresh[words[index]]
        if len(self._known) + len(fresh) > _MOST:
            self._known.clear()
        self._known.update((word, ids) for word, ids in fresh.items() if len(word) <= _LONGEST)
        return len(new)
