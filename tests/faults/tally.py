"""What an attack counted."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tally:
    """The outcome of one attack.

    Args:
        attack: its name, as `benchmarks/torture.py` calls it.
        cases: how many times something was done to a victim.
        failures: what broke a promise, one line each, with what is needed to see it again.
        facts: further counts by name (kills, refusals, calls); only to be shown.
    """

    attack: str
    cases: int
    failures: tuple[str, ...] = ()
    facts: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line, then a line for each failure."""
        counted = "".join(f", {number:,} {name}" for name, number in self.facts.items())
        first = f"{self.attack}: {self.cases:,} cases{counted}, {len(self.failures):,} failures"
        return "\n  ".join((first, *self.failures))
