"""One look at the whole process table: every process that may be seen, with what tells who it is and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from solorun.frozen import dataclass
from solorun.owner import Here, ProcessId


@dataclass(frozen=True, slots=True)
class Row:
    """One process as the platform's table tells it.

    Args:
        pid: its number.
        parent: PID of its parent; 0 for none that can be seen.
        started: start token; 0 where it cannot be read.
        age_s: seconds since it was born.
        cpu_s: seconds of CPU, its own and not its children's.
        resident: bytes of memory.
        has_terminal: whether a terminal controls it.
        argv: command line; split at spaces where another user's can be had no better (macOS).
    """

    pid: int
    parent: int
    started: int
    age_s: float
    cpu_s: float
    resident: int
    has_terminal: bool
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """A row, and what had to be asked of the process itself.

    Args:
        row: from the table.
        process: its identity.
        user: login name; empty when it cannot be told.
        cwd: working directory; empty when it cannot be told.
        run_id: of the guarded run that it was started as part of; empty for none, or where that may not be read.
        supervisor: that run's guard, dead or alive; None for none.
    """

    row: Row
    process: ProcessId
    user: str
    cwd: str
    run_id: str
    supervisor: ProcessId | None


def enrich(
    rows: Iterable[Row],
    here: Here,
    user_of: Callable[[int], str],
    cwd_of: Callable[[int], str],
    variables_of: Callable[[int], tuple[str, str]],
) -> tuple[Seen, ...]:
    """Ask each process for what the table does not tell. Kernel threads, which have no command line, are left out.

    Args:
        rows: the table.
        here: where it was looked at.
        user_of: login name by PID.
        cwd_of: working directory by PID.
        variables_of: run id and supervisor (`PID:START`) from the environment of a PID, empty where there are none.
    """
    found = []
    for row in rows:
        if not row.argv:
            continue
        run_id, supervisor = variables_of(row.pid)
        guard, _, started = supervisor.partition(":")
        guarded = guard.isdigit() and started.isdigit()
        guardian = ProcessId(here, int(guard), int(started)) if guarded else None
        identity = ProcessId(here, row.pid, row.started)
        found.append(Seen(row, identity, user_of(row.pid), cwd_of(row.pid), run_id, guardian))
    return tuple(found)
