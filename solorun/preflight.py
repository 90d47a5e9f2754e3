"""What to look at before a start: locks, other training, orphans, memory, disk, accelerators; and whether it is safe.

`look` gathers, and clears locks that are proven stale; `judge` is pure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from solorun import accelerator, disk, memory, process, status
from solorun.accelerator import Accelerators
from solorun.claim import clear_stale
from solorun.disk import Room
from solorun.errors import advice
from solorun.findings import (
    AcceleratorInUse,
    AcceleratorUnknown,
    Finding,
    LockInUse,
    LowDisk,
    LowMemory,
    NotWritable,
    OrphanLeft,
    OtherTraining,
    SameProgramElsewhere,
    Severity,
    StaleCleared,
    who_runs,
)
from solorun.frozen import dataclass
from solorun.label import look as look_at_lock
from solorun.memory import Memory
from solorun.neighbours import Orphan, Training, family, orphans, program_of, says_cpu, trainings
from solorun.owner import Free, ProcessId, Stale
from solorun.runstate import Evidence, Idle, Left, RunState, Unreadable, classify
from solorun.settings import Settings
from solorun.sharing import directory_held_by, in_use, is_shared, refuse, tell_of, tell_of_unknown
from solorun.wording import ask_to_clear


@dataclass(frozen=True, slots=True)
class Safe:
    """A run may start in this directory."""

    directory: Path
    cleared: str
    program: str = ""
    """What is trained here, as `neighbours.program_of` names it."""
    writable: bool = True
    """Whether this user may write there, or make it."""


@dataclass(frozen=True, slots=True)
class Unsafe:
    """A run would be refused, or should not start."""

    directory: Path
    state: RunState
    row: dict[str, object]
    following: str = ""
    """What to do, where the state alone does not tell."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything that was seen.

    Args:
        directories: the results directories that were looked at.
        whole_machine: no directory was named: is it safe to start anything here?
        runs: other training runs on this machine.
        held: results directories by the leader of the run in them, as far as they are known.
        orphans: processes that nobody watches over.
        memory: of the machine; None where it cannot be told.
        rooms: on disk, one for each file system.
        accelerators: that a start from here would use.
        in_use: by whom.
    """

    directories: tuple[Safe | Unsafe, ...]
    whole_machine: bool
    runs: tuple[Training, ...]
    held: Mapping[int, str]
    orphans: tuple[Orphan, ...]
    memory: Memory | None
    rooms: tuple[Room, ...]
    accelerators: Accelerators
    in_use: tuple[AcceleratorInUse, ...]


def check(
    directories: Iterable[Path],
    now: float,
    settings: Settings,
    carriers: Callable[[str], Iterable[ProcessId]] = process.carriers,
) -> list[Safe | Unsafe]:
    """Look at each directory, and clear the locks that are proven stale.

    A directory that does not exist yet is safe: a start makes it.

    Args:
        directories: their paths.
        now: seconds since the epoch.
        settings: in force.
        carriers: finds live processes of a run by its id.
    """
    return [_check(directory, now, settings, carriers) for directory in directories]


def _check(
    directory: Path, now: float, settings: Settings, carriers: Callable[[str], Iterable[ProcessId]]
) -> Safe | Unsafe:
    program = _configured_program(directory, settings)
    writable = _may_write(directory)
    try:
        os.lstat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return Safe(directory, "", program, writable)
    except OSError as error:  # such as a name that is too long for any file system
        nowhere = Unreadable(str(directory), error.strerror or str(error))
        return Unsafe(directory, nowhere, status.as_row(directory, nowhere, None, now))
    evidence = status.gather(directory, now, carriers)
    if isinstance(evidence, Unreadable):
        return Unsafe(directory, evidence, status.as_row(directory, evidence, None, now))
    state = classify(evidence, now, settings)
    if isinstance(state, Idle):
        return Safe(directory, "", program or _last_program(evidence), writable)
    if isinstance(state, Left):
        try:
            cleared = clear_stale(directory, now)
        except OSError as error:
            return _not_cleared(directory, state, status.as_row(directory, state, evidence, now), error)
        if cleared is not None:
            return Safe(directory, cleared.proof, program or _last_program(evidence))
    return Unsafe(directory, state, status.as_row(directory, state, evidence, now))


def _not_cleared(directory: Path, state: Left, row: dict[str, object], error: OSError) -> Unsafe:
    if state.kept_by:
        return Unsafe(directory, state, row, ask_to_clear(state.kept_by))
    why = f"{state.proof}; what it left cannot be removed: {error.strerror or error}"
    return Unsafe(directory, state, {**row, "detail": why}, advice(error))


def _may_write(directory: Path) -> bool:
    """Whether files can be made in a directory, or it can be made where it is missing."""
    place = directory.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return os.access(place, os.W_OK | os.X_OK)


def _configured_program(directory: Path, settings: Settings) -> str:
    entry = settings.run_entry(directory)
    return program_of(entry.command, str(entry.cwd)) if entry else ""


def _last_program(evidence: Evidence) -> str:
    """Of the last run; relative names are taken from here, where the next one is probably started."""
    return program_of(evidence.record.program, os.getcwd()) if evidence.record else ""


def look(
    directories: Iterable[Path],
    now: float,
    settings: Settings,
    *,
    whole_machine: bool,
    share_accelerator: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Sight:
    """Look at directories and machine, and clear the locks that are proven stale.

    Args:
        directories: results directories.
        now: seconds since the epoch.
        settings: in force.
        whole_machine: no directory was named.
        share_accelerator: whether sharing was allowed on the command line.
        environment: of a start from here.
    """
    table = process.census()
    by_run: dict[str, list[ProcessId]] = {}
    for one in table:
        if one.run_id and one.row.pid != os.getpid():
            by_run.setdefault(one.run_id, []).append(one.process)
    found = tuple(check(directories, now, settings, lambda run_id: by_run.get(run_id, ())))
    mine = family(table, os.getpid(), environment.get(process.RUN_ID_VARIABLE, ""))
    live = frozenset(str(f.row["run_id"]) for f in found if isinstance(f, Unsafe) and f.row["pid"])
    orphaned = orphans(table, mine, live, _may_hold)
    proven = frozenset(orphan.seen.row.pid for orphan in orphaned if orphan.proven)
    runs = trainings(table, mine | proven)
    seen = accelerator.read()
    seen = Accelerators(accelerator.visible(seen.devices, environment), seen.problem)
    shared = share_accelerator or settings.share_accelerator or is_shared(environment)
    return Sight(
        directories=found,
        whole_machine=whole_machine,
        runs=runs,
        held=_held(found, runs),
        orphans=orphaned,
        memory=memory.read(),
        rooms=_rooms(
            [f.directory for f in found] or [*map(Path, filter(os.path.isdir, settings.roots))] or [Path.cwd()]
        ),
        accelerators=seen,
        in_use=in_use(seen.devices, trainings(table, mine), table, mine, shared=shared),  # orphans use it as well
    )


def _may_hold(pid: int) -> bool:
    """Whether a process holds a results directory, or that cannot be told."""
    return process.open_directories(pid) is None or directory_held_by(pid) != ""


def _held(found: tuple[Safe | Unsafe, ...], runs: tuple[Training, ...]) -> dict[int, str]:
    owners = {f.row["pid"]: str(f.directory) for f in found if isinstance(f, Unsafe) and f.row["pid"]}
    held: dict[int, str] = {}
    for run in runs:
        known = [owners[pid] for pid in run.pids if pid in owners]
        where = known[0] if known else next(filter(None, map(directory_held_by, sorted(run.pids)[:8])), "")
        if where:
            held[run.leader.row.pid] = where
    return held


def _rooms(directories: list[Path]) -> tuple[Room, ...]:
    """The tightest of each file system."""
    tightest: dict[int, Room] = {}
    for room in filter(None, map(disk.read, directories)):
        known = tightest.get(room.device)
        if known is None or (disk.is_full(room), -room.checkpoints) > (disk.is_full(known), -known.checkpoints):
            tightest[room.device] = room
    return tuple(tightest.values())


def judge(sight: Sight, settings: Settings) -> tuple[Finding, ...]:
    """What of all that was seen a person should know. Safe means that nothing of it blocks. Pure.

    With no directory named the question is whether anything may start on this machine, and any other training and
    anything that is left of a run that is over blocks; with directories named, such neighbours only warn.

    Args:
        sight: what was seen.
        settings: thresholds.
    """
    found: list[Finding] = []
    for one in sight.directories:
        if isinstance(one, Unsafe):
            found.append(_lock_in_use(one))
        elif one.cleared:
            found.append(StaleCleared(one.directory, one.cleared))
        elif not one.writable and not sight.whole_machine:  # where others train is their affair
            found.append(NotWritable(one.directory))
    found += _neighbours(sight)
    for orphan in sight.orphans:
        found.append(OrphanLeft(orphan, "blocks" if orphan.proven and sight.whole_machine else "warns"))
    if sight.memory is not None and memory.is_low(sight.memory, settings):
        found.append(LowMemory(sight.memory))
    found += [LowDisk(room) for room in sight.rooms if disk.is_low(room, settings)]
    found += sight.in_use
    if sight.accelerators.problem:
        found.append(AcceleratorUnknown(sight.accelerators.problem))
    return tuple(found)


def _lock_in_use(one: Unsafe) -> LockInUse:
    pid, user = one.row.get("pid"), one.row.get("user")
    return LockInUse(
        one.directory, str(one.row["state"]), str(one.row["detail"]),
        pid if isinstance(pid, int) else None, user if isinstance(user, str) else None,
        following=one.following,
    )  # fmt: skip


def _neighbours(sight: Sight) -> list[Finding]:
    """Other runs, without those that a looked-at directory tells of anyhow."""
    told = {str(one.directory) for one in sight.directories if isinstance(one, Unsafe)}
    owners = {one.row["pid"] for one in sight.directories if isinstance(one, Unsafe)}
    on_accelerator = {finding.who.pid for finding in sight.in_use if finding.severity == "blocks"}
    found: list[Finding] = []
    for run in sight.runs:
        where = sight.held.get(run.leader.row.pid, "")
        if run.pids & owners or where in told:
            continue
        who = who_runs(run, where)
        same = [d for d in sight.directories if isinstance(d, Safe) and run.program and d.program == run.program]
        if same and not sight.whole_machine:
            severity: Severity = "blocks" if who.pid in on_accelerator else "warns"
            found += [SameProgramElsewhere(d.directory, who, severity) for d in same]
        else:
            found.append(OtherTraining(who, "blocks" if sight.whole_machine else "warns"))
    return found


def require_safe_start(
    directory: Path,
    argv: tuple[str, ...],
    settings: Settings,
    *,
    share_accelerator: bool,
    tell: Callable[[str], None],
    cwd: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """What `start` asks before it claims a directory: would the run share an accelerator?

    Where sharing is allowed, nothing is asked and nothing told. A held directory is passed over at once: the claim
    refuses it, and says who holds it.

    Args:
        directory: results directory of the start.
        argv: its command.
        settings: in force.
        share_accelerator: whether sharing was allowed on the command line.
        tell: told in one line of other runs on this machine, and where it cannot be known who uses the accelerator.
        cwd: of the command; ours unless told otherwise.
        environment: of the command.

    Raises:
        NotSafe: another run uses the accelerator that this one would use.
    """
    if share_accelerator or settings.share_accelerator or is_shared(environment) or _is_held(directory):
        return
    table = process.census()
    mine = family(table, os.getpid())
    runs = trainings(table, mine)
    if not says_cpu(argv):
        seen = accelerator.read()
        refuse(in_use(accelerator.visible(seen.devices, environment), runs, table, mine, shared=False))
        tell_of_unknown(seen, environment, tell)
    tell_of(runs, program_of(argv, str(cwd or Path.cwd())), tell)


def _is_held(directory: Path) -> bool:
    try:
        return not isinstance(look_at_lock(directory), Free | Stale)
    except OSError:
        return False
