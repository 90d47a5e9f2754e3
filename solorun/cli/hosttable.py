"""Runs of several hosts in one table, for people and for programs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

from solorun.cli.render import WIDTH, asking, doing, laid_out, next_steps, waits, wrapped
from solorun.errors import explain
from solorun.hosts import NotReached, Reached, Report
from solorun.runstate import PROBLEMS
from solorun.wording import ago, printable, short

Found = Reached | NotReached
_HEAD = ("HOST", "DIRECTORY", "STATE", "PID", "USER", "STEP", "RATE", "LEFT", "LOG")


def columns(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells as aligned lines, the head first."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in [head, *lines]]


def host_rows(found: Found, now: float) -> list[dict[str, Any]]:
    """The rows of one host, as `--json` gives them: each with its host, and when it was seen."""
    report = report_of(found)
    if report is None:
        return []
    seen = {"host": found.host.name, "last_seen": report.seen, "age_s": max(0.0, now - report.seen)}
    return [{**row, **seen, "reachable": isinstance(found, Reached)} for row in report.runs]


def host_facts(found: Found, now: float) -> dict[str, Any]:
    """One host as `--json` gives it; the keys are frozen, new ones may be added."""
    report = report_of(found)
    return {
        "name": found.host.name,
        "ssh": found.host.ssh,
        "reachable": isinstance(found, Reached),
        "version": report.version if report else None,
        "last_seen": report.seen if report else None,
        "age_s": max(0.0, now - report.seen) if report else None,
        "problem": found.error.what if isinstance(found, NotReached) else None,
    }


def report_of(found: Found) -> Report | None:
    """What a host says, or said the last time."""
    return found.report if isinstance(found, Reached) else found.last


def hosts_and_runs(all_found: Sequence[Found], here: Sequence[dict[str, Any]], now: float) -> list[str]:
    """One line per run, with its host; what needs attention below it; then the hosts that did not answer.

    Args:
        all_found: the hosts.
        here: rows of this machine, with their `host`.
        now: seconds since the epoch.
    """
    rows = [(row, os.getcwd(), "") for row in here]
    for found in all_found:
        report = report_of(found)
        there = str(report.said.get("cwd") or "") if report else ""
        rows += [(row, there, found.host.name) for row in host_rows(found, now)]
    lines: list[str] = []
    if rows:
        head, *body = laid_out(_HEAD, [_cells(row, there) for row, there, _ in rows], 1)
        lines += head
        for drawn, (row, there, host) in zip(body, rows, strict=True):
            lines += [*drawn, *_below(row, _short(row, there), host)]
    for found in all_found:
        if isinstance(found, NotReached):
            lines += problem(found, now)
        elif not found.report.runs:
            lines.append(f"{printable(found.host.name)}: no runs found")
    return lines


def problem(found: NotReached, now: float) -> list[str]:
    """Why a host did not answer, when it was last seen, and what to do."""
    seen = "never seen from here"
    if found.last is not None:
        seen = f"last seen {ago(now - found.last.seen)} ago; unreachable is not dead: its runs may go on"
    what, *rest = explain(found.error).splitlines()
    return [what, f"  {seen}", *rest]


def _below(row: dict[str, Any], where: str, host: str) -> list[str]:
    """What a live run does, the reason and the next step; nothing for a state that is only remembered."""
    if not row.get("reachable", True):
        return []
    live = [f"  {line}" for line in wrapped(", ".join(doing(row)), WIDTH - 2)]
    return [*live, *(f"  {waits(waiter)}" for waiter in row.get("waiting", ())), *_attention(row, where, host)]


def _attention(row: dict[str, Any], where: str, host: str) -> list[str]:
    state = str(row.get("state"))
    if state not in PROBLEMS and state != "foreign":
        return []
    place = printable(shlex.quote(where))
    if state == "unreadable" or not host:
        step = next_steps(state, place)
    else:
        step = next_steps(state, f"--host {printable(shlex.quote(host))} {place}")
    reason = wrapped(printable(str(row.get("detail", ""))), WIDTH - 2)
    return [*(f"  {line}" for line in reason), f"  next: {asking(row) or step}"]


def _short(row: dict[str, Any], there: str) -> str:
    """A directory as a command for that host takes it."""
    path = str(row.get("directory"))
    return path.removeprefix(f"{there.rstrip('/')}/") if there else path


def _cells(row: dict[str, Any], there: str) -> tuple[str, ...]:
    """The cells of a row; of a remembered one only what still holds. Another version may leave keys out."""
    now = row.get("reachable", True)
    state, ended = str(row.get("state", "?")), row.get("ended")
    if not now:
        state = f"last seen {state}"
    elif state == "idle" and ended:
        state = str(ended)
    step, total = row.get("step"), row.get("total")
    pid, rate = (row.get("pid"), row.get("rate")) if now and state[:4] != "idle" else (None, None)
    cells = (
        row.get("host") or "-",
        _short(row, there),
        state,
        "-" if pid is None else pid,
        row.get("user") or "-",
        "-" if step is None else f"{step}/{total}" if total else step,
        f"{rate:.2f}/s" if isinstance(rate, int | float) else "-",
        _duration(row.get("eta_s") if now else None),
        _duration(row.get("log_age_s") if now else None),
    )
    return tuple(printable(str(cell)) for cell in cells)


def _duration(seconds: object) -> str:
    return short(seconds) if isinstance(seconds, int | float) else "-"
