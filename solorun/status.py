"""Evidence on results directories, gathered at the edge without changing anything; `runstate` judges it."""

from __future__ import annotations

import os
import time

from solorun import process
from solorun.frozen import replace
from solorun.hang import WINDOW_S, Looks
from solorun.label import is_copy, judge_found, kept_by, read_label, read_owner
from solorun.owner import (
    Activity,
    Free,
    Gone,
    Held,
    Here,
    Label,
    Owner,
    ProcessId,
    Stale,
)
from solorun.progress import read_progress
from solorun.record import read_record
from solorun.rundir import LABEL, LOG, OWNER, PROGRESS, RUN, WAITING, by_parts, checkpoint_files, find_all, tidy
from solorun.runstate import (
    NAMES,
    Elsewhere,
    Evidence,
    Hung,
    Running,
    RunState,
    Silent,
    Unreadable,
    classify,
    detail,
    how_ended,
    needs_second_look,
)
from solorun.settings import Settings
from solorun.truth import guard_identity, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from solorun.quiet import Quiet
    from solorun.rundir import Recall
    from solorun.waiting import Waiter

    Heirs = Callable[[int], Iterable[ProcessId]]
    _Found = dict[str, Evidence | Unreadable]
    Told = tuple[str, RunState, Evidence | None]

MANY = 32
"""Of fewer directories in one folder nothing is kept: they are looked at sooner than the file is read."""


def gather(
    directory: str | os.PathLike[str],
    now: float,
    carriers: Callable[[str], Iterable[ProcessId]] = process.carriers,
    heirs: Heirs | None = None,
) -> Evidence | Unreadable:
    """Look at one directory, changing nothing.

    Args:
        directory: its path.
        now: seconds since the epoch.
        carriers: finds live processes of a run by its id.
        heirs: finds those that keep the lock of a run that is over; None to look for them here.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return Unreadable(str(directory), error.strerror or str(error))
    try:
        return _gather(str(directory), fd, now, carriers, heirs or _RunsAlive().heirs)
    except OSError as error:
        return Unreadable(str(directory), error.strerror or str(error))
    finally:
        os.close(fd)


def _gather(
    directory: str, fd: int, now: float, carriers: Callable[[str], Iterable[ProcessId]], heirs: Heirs
) -> Evidence:
    # Most of many directories are idle: what is not in the listing is not even reached for.
    names = frozenset(os.listdir(fd))
    claimed = LABEL in names or OWNER in names
    owner = read_owner(fd) if OWNER in names else None
    found = read_label(fd) if claimed else None
    verdict = judge_found(fd, found, owner) if claimed else Free()
    label = found if isinstance(found, Label) else None
    record = read_record(fd) if RUN in names else None
    if isinstance(verdict, Held) and verdict.owner is None and verdict.pid and not _lives_here(owner, fd):
        owner = _old_style_owner(directory, fd, verdict.pid, label)
    told = owner or record
    run_id = told.run_id if told and not is_copy(fd, told) else ""  # what is left of a copied run lives elsewhere
    over = isinstance(verdict, Free | Stale)
    return Evidence(
        directory=directory,
        verdict=verdict,
        owner=owner,
        label=label,
        label_alive=bool(label and label.pid and not isinstance(process.probe(label.pid), Gone)),
        sighting=process.probe(owner.process.pid) if owner else Gone(),
        survivors=tuple((carriers(run_id) if run_id else ()) or heirs(fd)) if over else (),
        progress=read_progress(fd) if PROGRESS in names else None,
        record=record,
        log_age_s=_age(fd, now) if LOG in names else None,
        kept_by=kept_by(fd) if isinstance(verdict, Stale) else "",
        checkpoint=next(iter(checkpoint_files(fd, names)), None),
        waiting=_waiting(directory) if WAITING in names else (),
    )


def _waiting(directory: str) -> tuple[Waiter, ...]:
    from solorun.waiting import read_queue  # hardly ever is there a queue to be read

    return read_queue(directory)


def _lives_here(owner: Owner | None, fd: int) -> bool:
    """Whether a record tells of a live run of this directory, whatever the label says."""
    return owner is not None and not is_copy(fd, owner) and process.is_alive(owner.process)


def _old_style_owner(directory: str, fd: int, pid: int, label: Label | None) -> Owner | None:
    """What the process table tells of a trainer that writes no record."""
    seen = process.probe(pid)
    if isinstance(seen, Gone):
        return None
    return Owner(
        run_id="",
        process=ProcessId(process.here(), pid, seen.started or 0),
        supervisor=None,
        adopted=True,
        user=process.user_of(pid),
        argv=process.argv(pid),
        cwd=process.cwd(pid),
        since=label.written if label else seen.born or 0.0,
        directory=directory,
        directory_inode=os.fstat(fd).st_ino,
    )


def _age(fd: int, now: float) -> float | None:
    try:
        return max(0.0, now - os.stat(LOG, dir_fd=fd).st_mtime)
    except OSError:
        return None


def survey(
    roots: Iterable[str | os.PathLike[str]],
    now: float,
    settings: Settings,
    *,
    window_s: float = WINDOW_S,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Told]:
    """The state of every results directory at or below the roots, sorted by path; roots that cannot be read as well.

    Args:
        roots: where to look.
        now: seconds since the epoch.
        settings: thresholds.
        window_s: seconds between two looks at runs that seem not to move, one window for all of them.
        sleep: waits for the window.
    """
    return _judged(_places(roots), now, settings, _RunsAlive(), window_s=window_s, sleep=sleep)


def rows(
    roots: Iterable[str | os.PathLike[str]], now: float, settings: Settings, state: str, version: str = ""
) -> list[dict[str, Any]]:
    """The same as `as_row` tells it, with what is known of directories that have not changed since an earlier status.

    Args:
        roots: where to look.
        now: seconds since the epoch, taken before.
        settings: thresholds.
        state: the user's state directory; "" to look at everything anew.
        version: of this program; what another one learned is not known to this one.
    """
    alive = _RunsAlive()
    quiet: Quiet | None = None

    def recall(path: str, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
        nonlocal quiet
        if len(names) < MANY:
            return {}
        if quiet is None:
            from solorun.quiet import Quiet

            quiet = Quiet(state, version, now, alive.by_run)
        return quiet.recall(path, names)

    places = _places(roots, recall) if state else _places(roots)
    known = quiet.rows if quiet else {}
    unknown = [path for path in places if path not in known]
    seen = {path: found for path in unknown if (found := quiet.look(path))} if quiet else {}
    fresh = {}
    for path, run_state, evidence in _judged(unknown, now, settings, alive):
        fresh[path] = as_row(path, run_state, evidence, now)
        if quiet is not None and evidence is not None and path in seen:
            quiet.learn(path, seen[path], fresh[path], evidence)
    if quiet is not None:
        quiet.keep()
    return [known.get(path) or fresh[path] for path in places]


class _RunsAlive:
    """One look at the process table, at most, for all directories of a survey."""

    def __init__(self) -> None:
        self._seen: dict[str, list[ProcessId]] | None = None
        self._flocked: frozenset[int] | None = None

    def by_run(self) -> dict[str, list[ProcessId]]:
        if self._seen is None:
            self._seen = process.runs_alive()
        return self._seen

    def carriers(self, run_id: str) -> Iterable[ProcessId]:
        return self.by_run().get(run_id, ())

    def heirs(self, directory: int) -> Iterable[ProcessId]:
        """Forked workers of a run that is over: neither label nor environment tells of them, but they have its lock."""
        if self._flocked is None:
            self._flocked = process.flocked()
        if not self._flocked:
            return ()
        places = (identity(directory), guard_identity(directory))
        return [heir for place in places if place and place[1] in self._flocked for heir in process.lock_heirs(*place)]


def _places(roots: Iterable[str | os.PathLike[str]], recall: Recall | None = None) -> list[str]:
    named = [tidy(root) for root in roots]
    found = find_all(named, recall) if recall else find_all(named)
    hidden = {root for root in named if _is_unreadable(root)} - {*found}
    return sorted([*found, *hidden], key=by_parts) if hidden else found


def _judged(
    places: Iterable[str],
    now: float,
    settings: Settings,
    alive: _RunsAlive,
    *,
    window_s: float = WINDOW_S,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Told]:
    found = {path: gather(path, now, alive.carriers, alive.heirs) for path in places}
    seen = _look_twice(found, now, settings, window_s, sleep)
    told: list[Told] = []
    for path, evidence in seen.items():
        if isinstance(evidence, Unreadable):
            told.append((path, evidence, None))
        else:
            later = now + window_s if evidence.looks else now
            told.append((path, classify(evidence, later, settings), evidence))
    return told


def examine(
    directory: str | os.PathLike[str],
    now: float,
    settings: Settings,
    *,
    window_s: float = WINDOW_S,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[RunState, Evidence | None]:
    """The state of one directory, with a second look where it takes one; a quick answer for a run that moves."""
    path = os.fspath(directory)
    found = _look_twice({path: gather(path, now)}, now, settings, window_s, sleep)[path]
    if isinstance(found, Unreadable):
        return found, None
    return classify(found, now + window_s if found.looks else now, settings), found


def _look_twice(
    found: _Found, now: float, settings: Settings, window_s: float, sleep: Callable[[float], None]
) -> _Found:
    """The evidence with a second look at every run that seems not to move; the others cost nothing."""
    suspects = [
        path for path, seen in found.items() if isinstance(seen, Evidence) and needs_second_look(seen, now, settings)
    ]
    if not suspects:
        return found
    first = _activities(found, suspects)
    sleep(window_s)
    # What the run itself wrote is read again too: it may have gone on within the window.
    again: _Found = {path: gather(path, now + window_s) for path in suspects}
    second = _activities(again, suspects)
    for path in suspects:
        before, after = found[path], again[path]
        if _is_same_owner(before, after) and isinstance(after, Evidence) and after.owner is not None:
            looks = Looks(after.owner.process.pid, first[path], second[path], window_s, process.background(window_s))
            again[path] = replace(after, looks=looks)
    return {**found, **again}


def _is_same_owner(before: Evidence | Unreadable, after: Evidence | Unreadable) -> bool:
    if isinstance(before, Unreadable) or isinstance(after, Unreadable) or not before.owner or not after.owner:
        return False
    return before.owner.process == after.owner.process


def _activities(found: _Found, suspects: Iterable[str]) -> dict[str, Mapping[int, Activity | None]]:
    """What every process of these runs has done so far: one look at the process table for all of them."""
    from solorun.members import members

    parents = process.parents()
    alive = process.runs_alive()
    seen: dict[str, Mapping[int, Activity | None]] = {}
    for path in suspects:
        evidence = found[path]
        owner = evidence.owner if isinstance(evidence, Evidence) else None
        run_id = owner.run_id if owner else ""
        whole = members(owner, run_id, lambda one: alive.get(one, ()), parents)
        seen[path] = {member.pid: process.activity(member.pid) for member in whole}
    return seen


def _is_unreadable(root: str) -> bool:
    try:
        os.scandir(root).close()
    except OSError:
        return True
    return False


def as_row(directory: str | os.PathLike[str], state: RunState, evidence: Evidence | None, now: float) -> dict[str, Any]:
    """One run as `solorun status --json` tells it; the keys are frozen, new ones may be added."""
    owner: Owner | None = getattr(state, "owner", None)
    live = isinstance(state, Running | Silent | Hung | Elsewhere)
    record = evidence.record if evidence else None
    progress = evidence.progress if evidence else None
    checkpoint = evidence.checkpoint if evidence else None
    run_id = owner.run_id if owner else record.run_id if record else None
    if progress is not None and progress.run_id != run_id:
        progress = None
    return {
        "directory": str(directory),
        "state": NAMES[type(state)],
        "pid": owner.process.pid if owner else None,
        "user": owner.user if owner else record.user if record else None,
        "since": owner.since if owner else record.started if record else None,
        "step": progress.step if progress else record.last_step if record else None,
        "total": progress.total or None if progress else record.total_steps if record else None,
        "rate": progress.rate if progress and live else None,
        "eta_s": progress.eta_s if progress and live else None,
        "log_age_s": evidence.log_age_s if evidence else None,
        "step_age_s": max(0.0, now - progress.time) if progress else None,
        "phase": progress.phase if progress and live else None,
        "run_id": run_id,
        "host": owner.process.here.host if owner else record.host if record else None,
        "command": list(owner.argv if owner else record.program if record else ()),
        "memory_bytes": process.resident_bytes(owner.process.pid) if owner and _is_here(owner.process.here) else None,
        "ended": how_ended(record) if record and not live else None,
        "detail": detail(state),
        "kept_by": getattr(state, "kept_by", "") or None,
        "checkpoint": checkpoint.step if checkpoint else None,
        "checkpoint_age_s": max(0.0, now - checkpoint.written) if checkpoint else None,
        "waiting": _queue_rows(evidence.waiting, now) if evidence and evidence.waiting else [],
    }


def _queue_rows(queue: tuple[Waiter, ...], now: float) -> list[dict[str, Any]]:
    from solorun.waiting import as_rows

    return as_rows(queue, now)


def _is_here(place: Here) -> bool:
    here = process.here()
    return (place.boot, place.namespace) == (here.boot, here.namespace)


def wall_clock() -> float:
    """Seconds since the epoch; the one place that the commands take the time from."""
    return time.time()
