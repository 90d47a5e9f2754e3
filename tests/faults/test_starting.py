"""Starts that fight for a directory and are killed; `benchmarks/torture.py` does it for 150 fights."""

from __future__ import annotations

from tests.faults.starting import attack


def test_of_many_starts_that_are_killed_at_random_one_writes_at_a_time_and_nothing_is_left() -> None:
    tally = attack(seed=4, share=4 / 150)
    print(tally)
    assert not tally.failures
    assert tally.facts["starts"] == 32
    assert tally.facts["SIGKILL"] >= 4
    assert tally.facts["stops"] >= 1
