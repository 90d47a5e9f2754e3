"""What to look at before a start: the locks, and whether anything stale can be cleared."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from solorun import status
from solorun.claim import clear_stale
from solorun.owner import Stale
from solorun.runstate import Idle, Left, RunState, Unreadable, classify
from solorun.settings import Settings


@dataclass(frozen=True, slots=True)
class Safe:
    """A run may start in this directory."""

    directory: Path
    cleared: str


@dataclass(frozen=True, slots=True)
class Unsafe:
    """A run would be refused, or should not start."""

    directory: Path
    state: RunState
    row: dict[str, object]


Finding = Safe | Unsafe


def check(directories: Iterable[Path], now: float, settings: Settings) -> list[Finding]:
    """Look at each directory, and clear the locks that are proven stale.

    A directory that does not exist yet is safe: a start makes it.
    """
    return [_check(directory, now, settings) for directory in directories]


def _check(directory: Path, now: float, settings: Settings) -> Finding:
    if not os.path.lexists(directory):
        return Safe(directory, "")
    evidence = status.gather(directory, now)
    if isinstance(evidence, Unreadable):
        return Unsafe(directory, evidence, status.as_row(directory, evidence, None, now))
    state = classify(evidence, now, settings)
    if isinstance(state, Idle):
        return Safe(directory, "")
    if isinstance(state, Left):
        cleared = _try_to_clear(directory, now)
        if cleared is not None:
            return Safe(directory, cleared.proof)
    return Unsafe(directory, state, status.as_row(directory, state, evidence, now))


def _try_to_clear(directory: Path, now: float) -> Stale | None:
    try:
        return clear_stale(directory, now)
    except OSError:  # without the right to write, the lock stands and the finding says so
        return None
