"""Puzzles that a model of sequences solves by carrying a state: sequences with an answer at some positions.

    sum mod m      symbols 0 to m - 1; at every position the sum of all so far, mod m (parity is m = 2)
    recall         4 to 8 pairs of a key and its value, a mark, then keys of these pairs to the end; at each of those
                   keys its value

Answers are tokens of their own in sums, so that a symbol is not mistaken for an answer; in recall they are the values.
A sheet is a pure function of puzzle, length, purpose, seed and step. Suffixes: B rows, S positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

NO_ANSWER = -1
Purpose = Literal["train", "test"]
_PURPOSES: tuple[Purpose, ...] = ("train", "test")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A batch of a puzzle.

    Args:
        tokens_BS: token ids.
        answers_BS: at each position the token id that answers, or `NO_ANSWER`.
    """

    tokens_BS: Tensor
    answers_BS: Tensor


class Puzzle(Protocol):
    """A kind of sheets.

    Attributes:
        name: for people and file names.
        vocabulary: V, number of token ids.
        chance: the share of right answers of whoever guesses blindly.
    """

    @property
    def name(self) -> str: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def chance(self) -> float: ...
    def sheet(self, random: np.random.Generator, rows: int, length: int) -> Sheet: ...


@dataclass(frozen=True, slots=True)
class Sum:
    """Running sum of symbols, mod `modulus`."""

    modulus: int

    @property
    def name(self) -> str:
        return "parity" if self.modulus == 2 else f"sum mod {self.modulus}"

    @property
    def vocabulary(self) -> int:
        return 2 * self.modulus

    @property
    def chance(self) -> float:
        return 1 / self.modulus

    def sheet(self, random: np.random.Generator, rows: int, length: int) -> Sheet:
        symbols = random.integers(0, self.modulus, (rows, length))
        return Sheet(torch.from_numpy(symbols), torch.from_numpy(symbols.cumsum(1) % self.modulus + self.modulus))


@dataclass(frozen=True, slots=True)
class Recall:
    """Values by their keys. Tokens: keys from 0, then values, then the mark."""

    keys: int = 16
    values: int = 16
    fewest: int = 4
    most: int = 8

    name = "recall"

    @property
    def vocabulary(self) -> int:
        return self.keys + self.values + 1

    @property
    def chance(self) -> float:
        return 1 / self.values

    def sheet(self, random: np.random.Generator, rows: int, length: int) -> Sheet:
        if length < 2 * self.most + 2:
            raise ValueError(f"{length} positions hold no {self.most} pairs, a mark and a question")
        tokens = np.empty((rows, length), np.int64)
        answers = np.full((rows, length), NO_ANSWER)
        for row_S, answers_S in zip(tokens, answers, strict=True):
            pairs = random.integers(self.fewest, self.most + 1)
            keys = random.permutation(self.keys)[:pairs]
            values = self.keys + random.integers(0, self.values, pairs)
            asked = random.integers(0, pairs, length - 2 * pairs - 1)
            row_S[0 : 2 * pairs : 2], row_S[1 : 2 * pairs : 2], row_S[2 * pairs] = keys, values, self.vocabulary - 1
            row_S[2 * pairs + 1 :], answers_S[2 * pairs + 1 :] = keys[asked], values[asked]
        return Sheet(torch.from_numpy(tokens), torch.from_numpy(answers))


PUZZLES: dict[str, Puzzle] = {puzzle.name: puzzle for puzzle in (Sum(5), Sum(2), Recall())}


def drawn(puzzle: Puzzle, purpose: Purpose, seed: int, step: int, rows: int, length: int) -> Sheet:
    """The sheet of a step: no two purposes, seeds or steps share their random numbers.

    Args:
        puzzle: the kind.
        purpose: sheets of a test are never trained on.
        seed: of the run, 0 or more.
        step: of the training, or the number of the test's sheet.
        rows: B.
        length: S.
    """
    random = np.random.default_rng([_PURPOSES.index(purpose), seed, step, length])
    return puzzle.sheet(random, rows, length)
