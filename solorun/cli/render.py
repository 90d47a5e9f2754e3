"""Tables and hints for people, at 80 columns."""

from __future__ import annotations

import os

from solorun.cli.places import relative
from solorun.runstate import PROBLEMS
from solorun.wording import ago, ask_to_clear, printable, shell_word, short, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

WIDTH = 80
_HEAD = ("DIRECTORY", "STATE", "PID", "USER", "STEP", "RATE", "LEFT", "LOG")


def runs_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line per run; under it what a live run does, and where one needs attention the reason and the next step.

    A name that would push the line beyond 80 columns has a line to itself, whole, so that it can be typed.
    """
    here = os.getcwd()
    shown = [relative(row["directory"], here) for row in rows]
    lines = laid_out(_HEAD, [_cells(row, name) for row, name in zip(rows, shown, strict=True)], 0)
    told = lines[0]
    for row, name, line in zip(rows, shown, lines[1:], strict=True):
        told += line
        told += _below(row, name)
    return told


def laid_out(head: Sequence[str], cells: Sequence[Sequence[str]], names: int) -> list[list[str]]:
    """The lines of the head and of each row, aligned; one line each, or two where a name would be too long.

    Args:
        head: titles of the columns.
        cells: the rows.
        names: the column whose cells may be too long; what stands before it goes with it.
    """
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    room = max(len(head[names]), WIDTH - sum(width + 2 for width in [*widths[:names], *widths[names + 1 :]]))
    widths[names] = max(len(name) for name in [head[names], *(line[names] for line in cells)] if len(name) <= room)
    columns = [f"%-{width}s" for width in widths]
    whole, above, kept = "  ".join(columns), "  ".join(columns[: names + 1]), [""] * (names + 1)
    body = []
    for line in cells:
        if len(line[names]) <= room:
            body.append([(whole % tuple(line)).rstrip()])
        else:
            name = (above % tuple(line[: names + 1])).rstrip()
            body.append([name, (whole % (*kept, *line[names + 1 :])).rstrip()])
    return [[(whole % tuple(head)).rstrip()], *body]


def _below(row: dict[str, Any], shown: str) -> list[str]:
    state = row["state"]
    if state == "idle" and not row["waiting"]:
        return []
    lines = wrapped(", ".join(doing(row)), WIDTH - 2)
    lines += [waits(waiter) for waiter in row.get("waiting", ())]
    if state in PROBLEMS or state == "foreign":
        lines += wrapped(row["detail"], WIDTH - 2)
        lines.append(f"next: {asking(row) or next_steps(state, shell_word(shown))}")
    return [f"  {line}" for line in lines]


def waits(waiter: dict[str, Any]) -> str:
    """Who waits for a directory, and since when."""
    return f"waiting: PID {waiter['pid']} of {printable(waiter['user'])} for {ago(waiter['for_s'])}"


def doing(row: dict[str, Any]) -> Iterator[str]:
    """What the line has no column for, of a run that is alive. A host of another version may leave keys out."""
    if row.get("pid") is None or row.get("state") in ("idle", "stale"):
        return
    if row.get("phase"):
        yield printable(str(row["phase"]).replace("-", " "))  # the heartbeat has no room for blanks
    if row.get("step_age_s") is not None:
        yield f"last step {ago(row['step_age_s'])} ago"
    if row.get("checkpoint") is not None and row.get("checkpoint_age_s") is not None:
        yield printable(f"checkpoint {row['checkpoint']} {ago(row['checkpoint_age_s'])} ago")
    if row.get("memory_bytes"):
        yield size(row["memory_bytes"])


def wrapped(text: str, width: int) -> list[str]:
    """A text on lines of this width; no word is cut, so that a path can still be typed."""
    if len(text) <= width:
        return [text] if text else []
    import textwrap

    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _cells(row: dict[str, Any], shown: str) -> tuple[str, ...]:
    step = "-" if row["step"] is None else str(row["step"])
    if row["total"]:
        step += f"/{row['total']}"
    idle = row["state"] == "idle"
    return (
        printable(shown),
        row["ended"] if idle and row["ended"] else row["state"],
        "-" if row["pid"] is None or idle else str(row["pid"]),
        row["user"] or "-",
        step,
        "-" if row["rate"] is None else f"{row['rate']:.2f}/s",
        "-" if row["eta_s"] is None else short(row["eta_s"]),
        "-" if row["log_age_s"] is None else short(row["log_age_s"]),
    )


_NEXT = {
    "running": "solorun logs -f {where}   or   solorun stop {where}",
    "silent": "look: solorun logs {where}   then, if it hangs: solorun recover {where}",
    "hung": "solorun recover {where}",
    "stale": "solorun check {where}   clears it; so does the next start",
    "orphaned": "solorun recover {where}   ends what is left of it",
    "contested": "solorun recover {where}   finds and ends all who write there",
    "foreign": "ask on that host; from here nothing is touched",
    "unreadable": "ls -la {where}",
}


def typed(path: str | os.PathLike[str]) -> str:
    """A path as the person would type it to a shell from here."""
    return shell_word(relative(path))


def asking(row: dict[str, Any]) -> str:
    """Whom to ask about a lock that was left behind and that you may not remove; empty for any other row."""
    return ask_to_clear(printable(str(row["kept_by"]))) if row.get("kept_by") else ""


def next_steps(state: str, where: str) -> str:
    """What to type next in a state."""
    return _NEXT.get(state, "solorun status {where}").format(where=where)
