"""The end of a run, written down once, by whoever saw it or by the next run: in `run.json`, journal and registry."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from solorun import process, registry
from solorun.causes import MemoryDeaths, cause_of, cause_of_vanishing, outcome, was_killed
from solorun.frozen import dataclass, replace
from solorun.lastwords import error_line, read_last_words, trouble
from solorun.owner import Here
from solorun.progress import read_progress
from solorun.record import RunRecord, State, ended, journal, read_events, write_record
from solorun.rundir import LOG
from solorun.settings import state_directory

OVER = ("ended", "found dead")
"""Exactly one of these events ends a run in the journal."""

_RECENT = 1 << 18
"""Bytes of the journal in which the events of the last run are looked for."""


@dataclass(frozen=True, slots=True)
class End:
    """What the process that saw a run end knows of it.

    Args:
        state: how it ended.
        exit_code: exit status; None when it is not known.
        signal: number of the signal that killed it, or asked it to stop.
        why: one line; empty when only the log can tell.
        memory: asked, for a process that was killed, what the kernel tells of memory that ran out.
    """

    state: State
    exit_code: int | None
    signal: int | None
    why: str
    memory: Callable[[], str] = lambda: ""


def write_end(directory: int, path: Path, record: RunRecord, end: End, now: float) -> RunRecord:
    """Write down the end of a run that was seen.

    Args:
        directory: descriptor of the results directory.
        path: where that is.
        record: of the run, still in the state `running`.
        end: what is known.
        now: seconds since the epoch.

    Raises:
        OSError: `run.json` cannot be written.
    """
    record = _with_steps(directory, record)
    words = read_last_words(directory, record.log_at) if end.state in ("crashed", "killed") else ()
    evidence = end.memory() if was_killed(end.signal if end.state == "killed" else None, end.exit_code, words) else ""
    why = f"kernel: {evidence}" if evidence else end.why
    if end.state == "crashed" and not why:
        why = error_line(words) or ": ".join((f"exit status {end.exit_code}", *trouble(words)[-1:]))
    record = ended(
        record, end.state, now, exit_code=end.exit_code, signal=end.signal, why=why,
        cause=cause_of(end.state, evidence, words),
        stopped_by=asked_by(read_events(directory, ("stop requested",), _RECENT), record.run_id),
        last_words="\n".join(words),
    )  # fmt: skip
    # The journal first: a kill between the two is found by the next start, which then writes no second end.
    with contextlib.suppress(OSError):
        journal(directory, record.run_id, "ended", now, **_facts(record))
    try:
        write_record(directory, record)
    finally:
        register(record, path)
    return record


def close_dead(directory: int, path: Path, last: RunRecord | None, now: float, here: Here) -> RunRecord | None:
    """Write down the end of runs that left none; call it only while holding the directory.

    Args:
        directory: descriptor of the results directory.
        path: where that is.
        last: the record that was found.
        now: seconds since the epoch.
        here: this machine and boot.

    Returns:
        The record of the last run as it should have been left; None when it needs no change.

    Raises:
        OSError: the journal cannot be read or written.
    """
    # An end that could not be read is not an end that is missing: a second one would be written.
    events = list(
        read_events(directory, ("started", "adopted", "stop requested", "killed", *OVER), _RECENT, strict=True)
    )
    over = {str(event.get("run_id")) for event in events if event["event"] in OVER}
    closed = None
    if last is not None and last.state == "running":
        closed = _found_dead(directory, last, events, here)
        if last.run_id not in over:
            journal(directory, last.run_id, "found dead", now, **_facts(closed))
            register(closed, path)
    elif last is not None and last.run_id not in over:  # it was killed between record and journal
        journal(directory, last.run_id, "ended", last.ended or now, **_facts(last))
    known = {last.run_id if last else "", ""}
    for event in events:
        run_id = str(event.get("run_id") or "")
        if event["event"] == "started" and run_id not in over | known:
            known.add(run_id)
            journal(directory, run_id, "found dead", now, cause="vanished", started=event.get("time"))
    return closed


def _found_dead(directory: int, last: RunRecord, events: list[dict[str, Any]], here: Here) -> RunRecord:
    own = [event for event in events if event.get("run_id") == last.run_id]
    pids = {last.pid, *(pid for event in own if isinstance(pid := event.get("pid"), int))}
    cause, why = cause_of_vanishing(last, here, "")
    if cause == "vanished" and last.host == here.host and (evidence := MemoryDeaths().evidence(pids, last.started)):
        cause, why = cause_of_vanishing(last, here, evidence)
    killer = next((event for event in own if event["event"] == "killed"), None)
    # Who was asked after the run had died, such as an orphan of it, is not the run.
    stopped_by = asked_by((event for event in own if event.get("pid") in (None, last.pid)), last.run_id)
    words = "\n".join(read_last_words(directory, last.log_at))
    seen = _last_sign_of_life(directory, last)
    found = _with_steps(directory, last)
    if killer is not None and isinstance(number := killer.get("signal"), int) and cause == "vanished":
        name = process.signal_name(number)
        by = str(killer.get("by") or stopped_by)
        return ended(
            found, "killed", seen, exit_code=128 + number, signal=number, why=name, cause="signal", stopped_by=by,
            last_words=words,
        )  # fmt: skip
    return ended(
        found, "lost", seen, exit_code=None, signal=None, why=why, cause=cause, stopped_by=stopped_by, last_words=words
    )


def asked_by(events: Iterable[dict[str, Any]], run_id: str) -> str:
    """Who asked a run to stop with `solorun stop`, by its journal; empty when nobody did."""
    return next(
        (
            by
            for event in events
            if event["event"] == "stop requested"
            and event.get("run_id") == run_id
            and isinstance(by := event.get("by"), str)
        ),
        "",
    )


def _last_sign_of_life(directory: int, record: RunRecord) -> float:
    times = [record.started]
    beat = read_progress(directory)
    if beat is not None and beat.run_id == record.run_id:
        times.append(beat.time)
    with contextlib.suppress(OSError):
        times.append(os.stat(LOG, dir_fd=directory).st_mtime)
    return max(times)


def _with_steps(directory: int, record: RunRecord) -> RunRecord:
    beat = read_progress(directory)
    if beat is None or beat.run_id != record.run_id or beat.phase == "starting":
        return record
    return replace(
        record, first_step=beat.first_step, last_step=beat.step, total_steps=beat.total or record.total_steps
    )


_TOLD = (
    "state", "exit_code", "signal", "first_step", "last_step", "total_steps", "why", "cause", "stopped_by",
    "last_words", "started", "ended", "user", "host", "pid", "parent_run_id",
)  # fmt: skip


def _facts(record: RunRecord) -> dict[str, Any]:
    """What the journal keeps of a run that is over: all that a history tells; the next run replaces `run.json`."""
    facts = {name: getattr(record, name) for name in _TOLD}
    return {name: value for name, value in facts.items() if value not in (None, "")}


def register(record: RunRecord, path: Path) -> None:
    """Note a run, or its end, in the user's registry. Never fails."""
    registry.note(state_directory(os.environ, sys.platform), entry_of(record, path))


def entry_of(record: RunRecord, path: Path) -> registry.Entry:
    """What the registry keeps of a run.

    Args:
        record: of the run.
        path: its directory, absolute.
    """
    here = process.here()
    return registry.Entry(
        record.run_id, path, here.machine if record.host in ("", here.host) else record.host, record.host, record.user,
        record.started, record.pid, record.ended, "" if record.state == "running" else outcome(record),
        record.last_step,
    )  # fmt: skip
