"""Supervised runs under random signals; `benchmarks/torture.py` does it for an hour."""

from __future__ import annotations

from tests.faults.endurance import attack


def test_runs_under_random_signals_neither_grow_nor_tear_nor_stay_behind() -> None:
    tally = attack(seed=4, share=15 / 3600)
    print(tally)
    assert not tally.failures
    assert tally.facts["harmless signals"] >= 2
    assert tally.facts["starts"] >= 3
    assert tally.facts["lines of journals"] >= 12
