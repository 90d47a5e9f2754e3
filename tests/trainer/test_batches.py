"""The order of the data is a pure function that visits every window once per epoch and costs the same at any step."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kssm.batches import batch_at, batch_digest, permuted, validation_batches
from kssm.errors import CorpusError

# Each token is its own place, so a batch tells where it was cut.
PLACES = np.arange(5_003, dtype=np.uint16)
KEY = st.integers(0, 2**64 - 1)


@given(size=st.integers(1, 3000), keys=st.lists(KEY, min_size=6, max_size=6))
def test_every_place_is_visited_once(size: int, keys: list[int]) -> None:
    images = permuted(np.arange(size, dtype=np.uint64), size, keys)
    assert sorted(images.tolist()) == list(range(size))


@given(size=st.integers(2**40, 2**62), keys=st.lists(KEY, min_size=6, max_size=6))
def test_a_place_in_a_huge_text_stays_in_it(size: int, keys: list[int]) -> None:
    places = np.array([0, 1, size // 2, size - 1], dtype=np.uint64)
    images = permuted(places, size, keys)
    assert len(set(images.tolist())) == 4
    assert images.max() < size


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(34, 600),
    length=st.integers(1, 33),
    rows=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10**12),
)
def test_an_epoch_holds_each_window_once(tokens: int, length: int, rows: int, seed: int, epoch: int) -> None:
    windows = max((tokens - length) // length, 1)
    begin, end = epoch * windows, (epoch + 1) * windows
    starts = [
        int(row[0])
        for step in range(begin // rows, -(-end // rows))
        for index, row in enumerate(batch_at(PLACES[:tokens], seed=seed, step=step, rows=rows, length=length))
        if begin <= step * rows + index < end
    ]
    shift = min(starts)
    assert sorted(starts) == [shift + place * length for place in range(windows)]
    assert max(starts) + length < tokens


def test_a_window_is_a_run_of_the_text_and_the_token_after() -> None:
    batch = batch_at(PLACES, seed=3, step=7, rows=16, length=32)
    assert batch.shape == (16, 33)
    assert batch.dtype == np.int64
    assert (np.diff(batch, axis=1) == 1).all()


def starts_of_epoch(seed: int, epoch: int) -> list[int]:
    windows = (len(PLACES) - 50) // 50
    batch = batch_at(PLACES, seed=seed, step=epoch, rows=windows, length=50)
    return batch[:, 0].tolist()


def test_epochs_and_seeds_have_their_own_order_and_shift() -> None:
    orders = {tuple(starts_of_epoch(seed, epoch)) for seed in (1, 2) for epoch in range(20)}
    assert len(orders) == 40
    assert len({min(order) for order in orders}) > 15


def test_an_order_is_not_nearly_sorted() -> None:
    for epoch in range(20):
        order = starts_of_epoch(5, epoch)
        rising = sum(one < other for one, other in itertools.pairwise(order))
        assert 0.3 < rising / len(order) < 0.7


@pytest.mark.parametrize(("rows", "of_each"), [(8, 2), (8, 4), (12, 3)])
def test_the_same_windows_come_whatever_the_rows_are_grouped_in(rows: int, of_each: int) -> None:
    whole = batch_at(PLACES, seed=1, step=9, rows=rows, length=16)
    parts = [
        batch_at(PLACES, seed=1, step=9 * rows // of_each + part, rows=of_each, length=16)
        for part in range(rows // of_each)
    ]
    assert np.array_equal(whole, np.concatenate(parts))


def test_the_order_is_the_same_in_every_version() -> None:
    # A run saved by an older version continues with its own order: this digest never changes.
    assert batch_digest(batch_at(PLACES, seed=1337, step=123, rows=8, length=64)) == "dd5404923618"


def test_a_memory_map_gives_the_same_batch(tmp_path: object) -> None:
    mapped = np.memmap(f"{tmp_path}/tokens", dtype="<u2", mode="w+", shape=PLACES.shape)
    mapped[:] = PLACES
    batches = [batch_at(tokens, seed=1, step=2, rows=4, length=64) for tokens in (PLACES, mapped)]
    assert np.array_equal(*batches)


def test_step_ten_million_costs_what_step_ten_does() -> None:
    def seconds(step: int) -> float:
        begin = time.thread_time()
        for further in range(20):
            batch_at(PLACES, seed=1, step=step + further, rows=32, length=64)
        return time.thread_time() - begin

    pairs = [(seconds(10), seconds(10_000_000)) for _ in range(15)]
    early, late = (min(column) for column in zip(*pairs, strict=True))
    assert late < 2 * early


def test_no_step_is_too_far() -> None:
    batch = batch_at(PLACES, seed=2**63 - 1, step=2**62, rows=64, length=16)
    assert (np.diff(batch, axis=1) == 1).all()


def test_a_text_of_just_one_window_is_enough_and_less_is_told() -> None:
    batch = batch_at(PLACES[:17], seed=1, step=5, rows=3, length=16)
    assert (batch == PLACES[:17]).all()
    with pytest.raises(CorpusError, match="has 16 tokens; a window needs 17") as caught:
        batch_at(PLACES[:16], seed=1, step=5, rows=3, length=16)
    assert "--seq-length" in caught.value.next_step
    with pytest.raises(CorpusError, match="a window needs 17"):
        validation_batches(PLACES[:16], count=1, rows=1, length=16)


def test_validation_is_spread_from_the_first_token_to_the_last_and_never_changes() -> None:
    batches = validation_batches(PLACES, count=5, rows=4, length=100)
    assert [batch.shape for batch in batches] == [(4, 101)] * 5
    starts = np.concatenate(batches)[:, 0]
    assert starts[0] == 0
    assert batches[-1][-1, -1] == PLACES[-1]
    assert set(np.diff(starts).tolist()) <= {258, 259}
    again = validation_batches(PLACES, count=5, rows=4, length=100)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))


def test_a_digest_tells_batches_apart() -> None:
    batch = batch_at(PLACES, seed=1, step=1, rows=2, length=8)
    other = batch.copy()
    other[1, 8] += 1
    assert batch_digest(batch) == batch_digest(batch.copy())
    assert batch_digest(batch) != batch_digest(other)
    assert len(batch_digest(batch)) == 12
