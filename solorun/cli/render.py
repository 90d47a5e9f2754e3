"""Tables and hints for people, at 80 columns."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solorun.cli.places import relative
from solorun.runstate import PROBLEMS
from solorun.wording import ago, printable

_HEAD = ("DIRECTORY", "STATE", "PID", "USER", "STEP", "RATE", "LEFT", "LOG")


def runs_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line per run, and under it, where one needs attention, the reason and the next step."""
    cells = [_cells(row) for row in rows]
    widths = [max(len(line[i]) for line in [_HEAD, *cells]) for i in range(len(_HEAD))]
    lines = [_line(_HEAD, widths)]
    for row, line in zip(rows, cells, strict=True):
        lines.append(_line(line, widths))
        if row["state"] in PROBLEMS or row["state"] == "foreign":
            lines.append(f"  {row['detail']}")
            lines.append(f"  next: {next_steps(row['state'], typed(row['directory']))}")
    return lines


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    step = "-" if row["step"] is None else str(row["step"])
    if row["total"]:
        step += f"/{row['total']}"
    state = row["state"] if row["state"] != "idle" or not row["ended"] else f"idle ({row['ended']})"
    return (
        printable(relative(row["directory"])),
        state,
        "-" if row["pid"] is None or row["state"] == "idle" else str(row["pid"]),
        row["user"] or "-",
        step,
        "-" if row["rate"] is None else f"{row['rate']:.2f}/s",
        "-" if row["eta_s"] is None else ago(row["eta_s"]),
        "-" if row["log_age_s"] is None else ago(row["log_age_s"]),
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
