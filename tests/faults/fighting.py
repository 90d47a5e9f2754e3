"""Processes that fight for one lock under SIGKILL and by-hand `rm`: the hammer of the benchmarks, told as a tally."""

from __future__ import annotations

from benchmarks.hammer import hammer
from tests.faults.tally import Tally

ACQUISITIONS = 50_000


def attack(seed: int, share: float = 1.0) -> Tally:
    """Fight.

    Args:
        seed: of kills and removals.
        share: of 50,000 acquisitions.
    """
    counts = hammer(max(100, round(ACQUISITIONS * share)), seed=seed)
    broken = {"double holders": counts.doubles, "errors": counts.errors, "stuck": int(counts.stuck)}
    failures = tuple(f"seed {seed}: {number} {what}" for what, number in broken.items() if number)
    facts = {"SIGKILLs": counts.kills, "labels removed": counts.removals, "refusals": counts.refusals, **broken}
    return Tally("fighting", counts.acquisitions, failures, facts)
