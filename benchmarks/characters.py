"""The text of the comparison of models: a file read as characters, its first nine tenths to learn from."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOURCE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_LEARNT = 0.9


@dataclass(frozen=True, slots=True)
class Characters:
    """A text as numbers of its own characters.

    Args:
        train: [n], the first nine tenths.
        validation: [m], the rest.
        alphabet: how many different characters the whole text has.
        digest: twelve hexadecimal digits of the file's sha256.
    """

    train: NDArray[np.uint16]
    validation: NDArray[np.uint16]
    alphabet: int
    digest: str


def characters(text: str) -> Characters:
    """A text's characters, numbered in the order of their code points."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    alphabet, numbers = np.unique(points, return_inverse=True)
    tokens, cut = numbers.astype(np.uint16), int(_LEARNT * len(numbers))
    return Characters(
        tokens[:cut], tokens[cut:], len(alphabet), hashlib.sha256(text.encode()).hexdigest()[:12]
    )  # fmt: skip


def read(path: Path | None) -> Characters:
    """The text in a file; ends the program with one line where there is none."""
    if path is None or not path.is_file():
        said = "say where the text is" if path is None else f"there is no text at {path}"
        sys.exit(f"{said}: --text FILE, the public TinyShakespeare of char-rnn: curl -o tinyshakespeare.txt {SOURCE}")
    try:
        # As bytes: line ends are characters of the text.
        return characters(path.read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"cannot read {path}: {error}; give the text as UTF-8 with --text FILE")
