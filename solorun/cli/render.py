"""Tables and hints for people, at 80 columns."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from solorun.cli.places import relative
from solorun.runstate import PROBLEMS
from solorun.wording import ago, printable, short, size

WIDTH = 80
_HEAD = ("DIRECTORY", "STATE", "PID", "USER", "STEP", "RATE", "LEFT", "LOG")


def runs_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line per run; under it what a live run does, and where one needs attention the reason and the next step.

    A name that would push the line beyond 80 columns has a line to itself, whole, so that it can be typed.
    """
    cells = [_cells(row) for row in rows]
    widths = [max(len(line[i]) for line in [_HEAD, *cells]) for i in range(len(_HEAD))]
    room = max(len(_HEAD[0]), WIDTH - sum(width + 2 for width in widths[1:]))
    widths[0] = max(len(name) for name in [_HEAD[0], *(line[0] for line in cells)] if len(name) <= room)
    lines = [_line(_HEAD, widths)]
    for row, line in zip(rows, cells, strict=True):
        if len(line[0]) > room:
            lines.append(line[0])
            line = ("", *line[1:])
        lines.append(_line(line, widths))
        lines += _below(row)
    return lines


def _below(row: dict[str, Any]) -> list[str]:
    lines = wrapped(", ".join(_doing(row)), WIDTH - 2)
    lines += [_waits(waiter) for waiter in row.get("waiting", ())]
    if row["state"] in PROBLEMS or row["state"] == "foreign":
        lines += wrapped(row["detail"], WIDTH - 2)
        lines.append(f"next: {next_steps(row['state'], typed(row['directory']))}")
    return [f"  {line}" for line in lines]


def _waits(waiter: dict[str, Any]) -> str:
    return f"waiting: PID {waiter['pid']} of {printable(waiter['user'])} for {ago(waiter['for_s'])}"


def _doing(row: dict[str, Any]) -> Iterator[str]:
    """What the line has no column for, of a run that is alive."""
    if row["pid"] is None or row["state"] in ("idle", "stale"):
        return
    if row["phase"]:
        yield printable(row["phase"])
    if row["step_age_s"] is not None:
        yield f"last step {ago(row['step_age_s'])} ago"
    if row.get("checkpoint") is not None:
        yield f"checkpoint {row['checkpoint']} {ago(row['checkpoint_age_s'])} ago"
    if row["memory_bytes"]:
        yield size(row["memory_bytes"])


def wrapped(text: str, width: int) -> list[str]:
    """A text on lines of this width; no word is cut, so that a path can still be typed."""
    if len(text) <= width:
        return [text] if text else []
    import textwrap

    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    step = "-" if row["step"] is None else str(row["step"])
    if row["total"]:
        step += f"/{row['total']}"
    idle = row["state"] == "idle"
    return (
        printable(relative(row["directory"])),
        row["ended"] if idle and row["ended"] else row["state"],
        "-" if row["pid"] is None or idle else str(row["pid"]),
        row["user"] or "-",
        step,
        "-" if row["rate"] is None else f"{row['rate']:.2f}/s",
        "-" if row["eta_s"] is None else short(row["eta_s"]),
        "-" if row["log_age_s"] is None else short(row["log_age_s"]),
    )


def typed(path: str | Path) -> str:
    """A path as the person would type it to a shell from here."""
    return printable(shlex.quote(relative(path)))


def next_steps(state: str, where: str) -> str:
    """What to type next in a state."""
    hints = {
        "running": f"solorun logs -f {where}   or   solorun stop {where}",
        "silent": f"look: solorun logs {where}   then, if it hangs: solorun recover {where}",
        "hung": f"solorun recover {where}",
        "stale": f"solorun check {where}   clears it; so does the next start",
        "orphaned": f"solorun recover {where}   ends what is left of it",
        "contested": f"solorun recover {where}   finds and ends all who write there",
        "foreign": "ask on that host; from here nothing is touched",
        "unreadable": f"ls -la {where}",
    }
    return hints.get(state, f"solorun status {where}")
