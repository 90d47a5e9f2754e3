"""Killed or stopped at any point of any step, a run ends with the bits of one that nothing interrupted."""

from __future__ import annotations

from tests.faults.exactness import Kind, attack, less_memory


def test_a_run_ended_at_steps_of_every_kind_and_gone_on_with_ends_with_the_same_bits() -> None:
    tally = attack(seed=11, share=0.1)
    assert not tally.failures, str(tally)
    assert tally.facts["SIGKILLs"] >= 6
    assert tally.facts["stops"] >= 3
    assert tally.facts["tensors compared"] > 100


def test_less_memory_from_a_step_on_changes_v4_by_rounding_alone() -> None:
    weights, losses = less_memory(Kind("v4", "tiny", ("--carry-state",)))
    assert 0 < weights < 1e-5
    assert losses < 1e-5
