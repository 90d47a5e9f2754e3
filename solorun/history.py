"""Every run that ever was in a directory, and how it ended: from the journal, `run.json`, and the registry."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from solorun import process
from solorun.causes import cause_of_vanishing, outcome
from solorun.closing import OVER, asked_by
from solorun.frozen import dataclass, replace
from solorun.label import look_at, read_owner
from solorun.owner import Foreign, Held
from solorun.progress import read_progress
from solorun.readjson import is_moment, is_whole
from solorun.record import RunRecord, State, read_events, read_record
from solorun.registry import Entry

_EVENTS = ("started", "stop requested", *OVER)


@dataclass(frozen=True, slots=True)
class PastRun:
    """One run of a directory.

    Args:
        directory: where it ran.
        record: all that is known of it; `state` is `running` only while it lives.
        outcome: how it ended, one line.
        vanished: the directory is gone, and only the registry tells of the run.
    """

    directory: Path
    record: RunRecord
    outcome: str
    vanished: bool = False


def runs_of(directory: Path) -> list[PastRun]:
    """Every run of a directory, newest first; none where it cannot be read. Changes nothing.

    Args:
        directory: the results directory.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        found = fold(read_events(fd, _EVENTS))
        last = read_record(fd)
        if last is not None:
            known = found.get(last.run_id)
            # A run that was found dead stands in run.json as running until the next start replaces it.
            found[last.run_id] = last if known is None or known.state == "running" else _merged(known, last)
        alive = _alive(fd)
        runs = [run if run.state != "running" else _still(fd, run, alive) for run in found.values()]
    except OSError:
        return []
    finally:
        os.close(fd)
    runs.sort(key=lambda run: run.started, reverse=True)
    return [PastRun(directory, run, outcome(run)) for run in runs]


def _merged(told: RunRecord, last: RunRecord) -> RunRecord:
    """The journal knows how it ended, the record what it was."""
    if last.state == "running":
        return replace(told, program=last.program or told.program, boot=last.boot, fingerprint=last.fingerprint)
    return replace(last, stopped_by=last.stopped_by or told.stopped_by)


def _alive(directory: int) -> str | None:
    """The id of the run that holds the directory, or that may hold it on another host; None when nobody does."""
    verdict = look_at(directory)
    if not isinstance(verdict, Held | Foreign):
        return None
    owner = verdict.owner or read_owner(directory)
    return owner.run_id if owner else None


def _still(directory: int, run: RunRecord, alive: str | None) -> RunRecord:
    """A run that nobody has written the end of: it runs, or vanished."""
    beat = read_progress(directory)
    if beat is not None and beat.run_id == run.run_id:
        run = replace(run, first_step=beat.first_step, last_step=beat.step, total_steps=beat.total or run.total_steps)
    if run.run_id == alive:
        return run
    cause, why = cause_of_vanishing(run, process.here(), "")
    seen = beat.time if beat is not None and beat.run_id == run.run_id else None
    return replace(run, state="lost", cause=cause, why=why, ended=seen)


def fold(events: Iterable[Mapping[str, Any]]) -> dict[str, RunRecord]:
    """Runs by id, as the events of a journal tell them, oldest first. Values of another kind are passed over."""
    found: dict[str, RunRecord] = {}
    asked: dict[str, tuple[str, object]] = {}
    for event in events:
        run_id = event.get("run_id")
        if not isinstance(run_id, str) or not run_id:
            continue
        if event["event"] == "stop requested":
            if run_id not in asked and (by := asked_by((dict(event),), run_id)):
                asked[run_id] = by, event.get("pid")
        elif event["event"] == "started" and run_id not in found:
            found[run_id] = _begun(run_id, event)
        elif event["event"] in OVER:
            found[run_id] = _over(found.get(run_id) or _begun(run_id, event), event)
    for run_id, (by, pid) in asked.items():
        run = found.get(run_id)
        if run is None or run.state == "completed":
            continue
        if run.state == "lost" and pid not in (None, run.pid):  # an orphan of it was asked, when it was long dead
            continue
        found[run_id] = replace(run, stopped_by=by)
    return found


def _begun(run_id: str, event: Mapping[str, Any]) -> RunRecord:
    time = _typed(event.get("started"), float, _typed(event.get("time"), float, 0.0))
    argv = event.get("argv")
    return RunRecord(
        run_id=run_id,
        parent_run_id=_typed(event.get("parent", event.get("parent_run_id")), str, None),
        program=tuple(word for word in argv if isinstance(word, str)) if isinstance(argv, list) else (),
        user=_typed(event.get("user"), str, ""),
        host=_typed(event.get("host"), str, ""),
        pid=_typed(event.get("pid"), int, 0),
        started=time,
        boot=_typed(event.get("boot"), str, ""),
    )


_STATES: Mapping[Any, State] = {
    "completed": "completed", "interrupted": "interrupted", "crashed": "crashed", "killed": "killed", "lost": "lost",
}  # fmt: skip


def _over(run: RunRecord, event: Mapping[str, Any]) -> RunRecord:
    said = event.get("state")  # the first version's `found dead` has none
    told = {
        name: value
        for name, kind in (
            ("exit_code", int), ("signal", int), ("first_step", int), ("last_step", int), ("total_steps", int),
            ("why", str), ("cause", str), ("stopped_by", str), ("last_words", str), ("user", str), ("host", str),
        )
        if (value := _typed(event.get(name), kind, None)) is not None
    }  # fmt: skip
    ended = _typed(event.get("ended"), float, _typed(event.get("time"), float, 0.0))
    return replace(run, state=_STATES.get(said, "lost") if isinstance(said, str) else "lost", ended=ended, **told)


def _typed(value: Any, kind: type, otherwise: Any) -> Any:
    """The value if it is of its kind: a damaged journal must not surprise whoever shows it."""
    if kind is float:
        return float(value) if is_moment(value) else otherwise
    if kind is int:
        return value if is_whole(value) else otherwise
    return value if isinstance(value, kind) else otherwise


def of_registry(entries: Iterable[Entry], known: frozenset[tuple[str, str]]) -> list[PastRun]:
    """Runs that only the registry tells of: their directory is gone, or its journal is.

    Args:
        entries: of the registry.
        known: (real directory, run id) of the runs that their own directories told of.
    """
    found = []
    for entry in entries:
        if (os.path.realpath(entry.directory), entry.run_id) in known:
            continue
        gone = not entry.directory.is_dir()
        record = RunRecord(
            entry.run_id, None, (), entry.user, entry.host, entry.pid, entry.started,
            state="lost", last_step=entry.last_step, ended=entry.ended,
        )  # fmt: skip
        how = entry.outcome or "its end was not written down"
        found.append(PastRun(entry.directory, record, how, vanished=gone))
    return found
