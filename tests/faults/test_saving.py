"""Kills of a real trainer that saves at every step; `benchmarks/torture.py` makes two thousand of them."""

from __future__ import annotations

from tests.faults.saving import attack


def test_killed_trainers_lose_no_save_that_was_told_and_start_again_without_a_hand() -> None:
    tally = attack(seed=6, share=0.01)
    print(tally)
    assert not tally.failures
    assert tally.cases >= 20
    assert tally.facts["files cut short"] >= 5, "kills struck in the middle of files"
    assert tally.facts["whole runs"] >= 1, "runs came to their end and were compared with unbroken ones"
