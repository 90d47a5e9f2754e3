"""Eight processes fight for one directory under SIGKILL and by-hand `rm`: nobody ever enters beside another."""

from __future__ import annotations

from benchmarks.hammer import hammer


def test_five_thousand_contended_acquisitions_have_no_double_holder_and_never_stick() -> None:
    counts = hammer(5_000, seed=7)
    print(counts)
    assert counts.doubles == 0
    assert counts.errors == 0
    assert not counts.stuck
    assert counts.acquisitions >= 5_000
    assert counts.kills >= 300
    assert counts.removals >= 100
