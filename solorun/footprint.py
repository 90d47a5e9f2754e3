"""The memory that a run holds, phase by phase: what the last save or evaluation took on top."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from solorun import process
from solorun.memory import Shortfall, forecast, growth_by_phase
from solorun.owner import ProcessId

MEMBERS_EVERY_S = 30.0
"""Who belongs to the run is asked no more often: the whole process table is looked at."""

_COMES_AGAIN = ("saving", "evaluating", "sampling")


class Footprint:
    """Keeps what the processes of a run hold.

    Args:
        members: finds the processes of the run.
    """

    def __init__(self, members: Callable[[], Sequence[ProcessId]]) -> None:
        self._find = members
        self._members: Sequence[ProcessId] = ()
        self._found_at: float | None = None
        self._before = self._phase = ""
        self._base = self._peak = 0
        self.resident = 0
        self.growth: dict[str, int] = {}

    def sample(self, phase: str, now: float) -> None:
        """Look once.

        Args:
            phase: what the run does.
            now: seconds on any clock that never goes back.
        """
        if self._found_at is None or now - self._found_at >= MEMBERS_EVERY_S:
            self._members, self._found_at = self._find(), now
        if phase != self._phase:
            self._before, self._phase, self._base, self._peak = self._phase, phase, self.resident, 0
        self.resident = sum(process.resident_bytes(member.pid) for member in self._members)
        self._peak = max(self._peak, self.resident)
        # Of the last time only: what an allocator keeps after the first save is not needed again for the second.
        grown = growth_by_phase([(self._before, self._base), (phase, self._peak)])
        self.growth[phase] = grown.get(phase, 0)

    def shortfall(self, available: int) -> Shortfall | None:
        """The phase that will come again and will probably not fit into so many bytes; None when all will."""
        coming = {phase: self.growth[phase] for phase in _COMES_AGAIN if phase in self.growth and phase != self._phase}
        return forecast(available, self.resident, coming)
