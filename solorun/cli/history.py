"""`solorun history [DIR ...]`: every run ever, and how it ended."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from solorun import registry
from solorun.cli.places import current_settings, note, roots, without_repeats
from solorun.cli.render import typed, wrapped
from solorun.closing import entry_of
from solorun.errors import BadUsage, directory_problem, explain
from solorun.history import PastRun, of_registry, runs_of
from solorun.rundir import find_all
from solorun.settings import state_directory
from solorun.status import wall_clock
from solorun.wording import ago, command_line, printable

_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_USUAL = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument(
        "places", nargs="*", metavar="DIR",
        help="results directories, or roots to search (default: every one that is known, also those that are gone); "
        "after them, a run's id shows that run whole",
    )  # fmt: skip
    parser.add_argument("--run", metavar="RUN_ID", help="show this run whole, with its last words", dest="run_id")
    parser.add_argument("-n", "--lines", type=int, metavar="N", help="the newest N runs (default 20; 0 for all)")
    parser.add_argument("--json", action="store_true", help="for programs: all runs, unless -n is given")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the runs, newest first; 0, or 1 when the run that was asked for is not known."""
    if arguments.lines is not None and arguments.lines < 0:
        raise BadUsage("-n counts runs, 0 or more", "write, for example, -n 50")
    places, run_id = list(arguments.places), arguments.run_id
    if run_id is None and places and _RUN_ID.fullmatch(places[-1]) and not os.path.lexists(places[-1]):
        run_id = places.pop()
    found = _gather(places)
    if run_id is not None:
        found = [past for past in found if past.record.run_id == run_id]
    limit = arguments.lines if arguments.lines is not None else 0 if arguments.json or run_id else _USUAL
    shown = found[:limit] if limit else found
    if arguments.json:
        print(json.dumps({"schema": 1, "runs": [_row(past) for past in shown]}, indent=1))
    elif not found:
        wanted = f"run {run_id}" if run_id else "runs"
        print(f"no {wanted} known" + (f" in {', '.join(map(typed, places))}" if places else ""))
    elif run_id is not None:
        print("\n\n".join("\n".join(_whole(past)) for past in shown))
    else:
        print("\n".join(_table(shown)))
        if len(found) > len(shown):
            print(f"... and {len(found) - len(shown)} earlier: -n 0 shows all")
    return 1 if run_id is not None and not found else 0


def _gather(named: list[str]) -> list[PastRun]:
    """Every run of the named places, newest first; without names, of all that are known, which the registry learns."""
    places = roots(named, current_settings(), tell=note)
    # A directory that was named is looked into even when nothing marks it as a results directory any more.
    directories = without_repeats([*find_all(places), *(places if named else ())])
    found = [past for directory in directories for past in runs_of(Path(directory))]
    for name in named:
        if os.path.isdir(name) and not os.access(name, os.R_OK | os.X_OK):  # "no runs known" would not be so
            note(explain(directory_problem(PermissionError(errno.EACCES, ""), "look into", name)))
    if not named:
        known = registry.read(state_directory(os.environ, sys.platform))
        told = frozenset((os.path.realpath(past.directory), past.record.run_id) for past in found)
        _teach(found, known)
        found += of_registry(known.entries, told)
    elif missing := [os.path.realpath(name) for name in named if not os.path.isdir(name)]:
        entries = registry.read(state_directory(os.environ, sys.platform)).entries
        found += of_registry([e for e in entries if os.path.realpath(e.directory) in missing], frozenset())
    return sorted(found, key=lambda past: past.record.started, reverse=True)


def _teach(found: list[PastRun], known: registry.Known) -> None:
    """Give the registry back what it lost, from the journals."""
    noted = {entry.run_id for entry in known.entries}
    missing = [entry_of(past.record, past.directory.absolute()) for past in found if past.record.run_id not in noted]
    if missing:
        registry.note(state_directory(os.environ, sys.platform), *missing)


def _row(past: PastRun) -> dict[str, Any]:
    record = past.record
    over = record.state != "running"
    return {
        "directory": str(past.directory),
        "vanished": past.vanished,
        "run_id": record.run_id,
        "parent_run_id": record.parent_run_id,
        "state": record.state,
        "cause": record.cause or None,
        "outcome": past.outcome,
        "started": record.started,
        "ended": record.ended if over else None,
        "seconds": _seconds(past),
        "first_step": record.first_step,
        "last_step": record.last_step,
        "total_steps": record.total_steps,
        "exit_code": record.exit_code,
        "signal": record.signal,
        "stopped_by": record.stopped_by or None,
        "user": record.user,
        "host": record.host,
        "pid": record.pid or None,
        "command": list(record.program),
        "last_words": record.last_words.splitlines(),
    }


def _seconds(past: PastRun) -> float | None:
    record = past.record
    end = wall_clock() if record.state == "running" else record.ended
    return None if end is None or not record.started else max(0.0, end - record.started)


def _steps(past: PastRun) -> str:
    record = past.record
    if record.last_step is None:
        return "-"
    span = f"{record.first_step}-{record.last_step}" if record.first_step is not None else str(record.last_step)
    return f"{span}/{record.total_steps}" if record.total_steps else span


def _when(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else "-"


def _lasted(past: PastRun) -> str:
    seconds = _seconds(past)
    return "-" if seconds is None else ago(seconds)


_HEAD = ("STARTED", "LASTED", "STEPS", "HOW IT ENDED")


def _table(runs: list[PastRun]) -> list[str]:
    """Two lines a run: when, how long, steps, end; and where, under which id."""
    cells = [(_when(past.record.started), _lasted(past), _steps(past)) for past in runs]
    widths = [max(len(row[i]) for row in (_HEAD, *cells)) for i in range(3)]
    margin = sum(widths) + 6
    lines = ["  ".join(word.ljust(width) for word, width in zip(_HEAD, (*widths, 0), strict=True)).rstrip()]
    for past, row in zip(runs, cells, strict=True):
        front = "".join(cell.ljust(width) + "  " for cell, width in zip(row, widths, strict=True))
        end = wrapped(printable(past.outcome), 80 - margin)
        lines += [front + end[0], *(" " * margin + line for line in end[1:3])]
        gone = " (gone)" if past.vanished else ""
        lines.append(f"  {typed(past.directory)}{gone}  {printable(past.record.run_id)}")
    return lines


def _whole(past: PastRun) -> list[str]:
    record = past.record
    facts = {
        "run": record.run_id,
        "directory": typed(past.directory) + (" (gone)" if past.vanished else ""),
        "continues": record.parent_run_id or "",
        "command": command_line(record.program) if record.program else "",
        "who": f"{record.user} on {record.host}" + (f", PID {record.pid}" if record.pid else ""),
        "started": _when(record.started),
        "ended": _when(record.ended) if record.state != "running" else "",
        "lasted": _lasted(past),
        "steps": _steps(past),
        "end": past.outcome,
        "status": "" if record.exit_code is None else str(record.exit_code),
    }
    lines = []
    for name, value in facts.items():
        if value:
            first, *rest = wrapped(printable(value), 68)
            lines += [f"{name:<10}  {first}", *(" " * 12 + line for line in rest)]
    if record.last_words:
        lines += ["last words", *("  " + printable(line) for line in record.last_words.splitlines())]
    return lines
