"""What counting can predict, against the plain formulas."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm.entropies import bigram_entropy, unigram_cross_entropy, unigram_entropy

TOKENS = st.lists(st.integers(0, 9), min_size=2, max_size=200)


def counts(tokens: list[int]) -> np.ndarray:
    return np.bincount(tokens, minlength=10)


@given(TOKENS)
def test_unigram_entropy_is_the_mean_surprise(tokens: list[int]) -> None:
    seen = Counter(tokens)
    surprise = [-math.log(seen[token] / len(tokens)) for token in tokens]
    assert unigram_entropy(counts(tokens)) == pytest.approx(math.fsum(surprise) / len(tokens), abs=1e-12)


@given(TOKENS, TOKENS)
def test_cross_entropy_is_the_mean_surprise_under_raised_counts(tokens: list[int], known: list[int]) -> None:
    seen = Counter(known)
    surprise = [-math.log((seen[token] + 1) / (len(known) + 10)) for token in tokens]
    expected = math.fsum(surprise) / len(tokens)
    assert unigram_cross_entropy(counts(tokens), counts(known)) == pytest.approx(expected, abs=1e-12)


@given(TOKENS, st.sampled_from(["<u2", "<u4"]))
def test_bigram_entropy_is_the_mean_surprise_after_the_token_before(tokens: list[int], dtype: str) -> None:
    pairs, before = Counter(itertools.pairwise(tokens)), Counter(tokens[:-1])
    surprise = [-math.log(pairs[pair] / before[pair[0]]) for pair in itertools.pairwise(tokens)]
    expected = math.fsum(surprise) / (len(tokens) - 1)
    assert bigram_entropy(np.array(tokens, dtype=dtype)) == pytest.approx(expected, abs=1e-12)
