"""The registry of started runs: which directories a user's runs were started in, also far from every root.

A convenience, never a truth: locks and journals lie in the results directories. Nothing here may fail or slow down a
start, so whatever goes wrong (no home, full disk, damaged or locked file) is passed over, and what was lost is
learned again from the journals. SQLite is imported only when there is something to read or to write.
"""

from __future__ import annotations

import os
import time

from solorun import kept
from solorun.frozen import dataclass
from solorun.readjson import is_moment

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from typing import Any

FILE = "runs.db"
KEPT = "directories.kept"
"""The directories of this machine as they were last read out of the registry: SQLite takes longer than all the rest."""

SCHEMA = 1
BUSY_S = 0.25
"""How long a start waits for another one that is writing."""

_TABLE = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT NOT NULL, directory BLOB NOT NULL, machine TEXT NOT NULL, host TEXT NOT NULL, user TEXT NOT NULL,
    started REAL NOT NULL, pid INTEGER NOT NULL, ended REAL, outcome TEXT, last_step INTEGER,
    PRIMARY KEY (run_id, directory)
)
"""
_COLUMNS = "run_id, directory, machine, host, user, started, pid, ended, outcome, last_step"


@dataclass(frozen=True, slots=True)
class Entry:
    """One started run.

    Args:
        run_id: names the run everywhere.
        directory: its results directory, absolute.
        machine: identity of the machine (`owner.Here.machine`); a home may be shared by several.
        host: its name, for people.
        user: login name.
        started: seconds since the epoch.
        pid: of the training process.
        ended: seconds since the epoch; None while it runs, and when nobody wrote it down.
        outcome: how it ended, one line; empty likewise.
        last_step: last step that it reported.
    """

    run_id: str
    directory: Path
    machine: str
    host: str
    user: str
    started: float
    pid: int
    ended: float | None = None
    outcome: str = ""
    last_step: int | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What the registry tells.

    Args:
        entries: every run that it knows, newest first.
        problem: why it tells nothing, one line; empty when it could be read, or does not exist yet.
    """

    entries: tuple[Entry, ...]
    problem: str = ""


def note(state: str | os.PathLike[str], *entries: Entry) -> bool:
    """Write runs down, or what has become of them. False when that was not possible; never an exception.

    An entry whose end is not known does not wipe out an end that is.

    Args:
        state: the user's state directory (`settings.state_directory`); made if it is missing.
        entries: the runs.
    """
    try:
        os.makedirs(state, 0o700, exist_ok=True)
        return _write(state, entries) or (_set_damaged_aside(state) and _write(state, entries))
    except Exception:  # whatever it is (no sqlite3 in this Python, no home): a start must not fail of it
        return False


def read(state: str | os.PathLike[str]) -> Known:
    """Every run that was ever noted. Changes nothing."""
    path = os.path.join(state, FILE)
    if not os.path.isfile(path):  # also where a FIFO stands, which would block for ever
        return Known(())
    from contextlib import closing

    try:
        with closing(_opened(path, "ro")) as database:
            newer = _version(database) > SCHEMA
            rows = [] if newer else database.execute(f"SELECT {_COLUMNS} FROM runs ORDER BY started DESC").fetchall()  # noqa: S608 - the columns are the constant above
    except Exception as error:  # a registry that cannot be read must not keep the roots from being shown
        return Known((), f"the registry {path!r} cannot be read ({error}); only the roots were looked at")
    if newer:
        return Known((), f"the registry {path!r} is of a newer version of solorun; only the roots were looked at")
    return Known(tuple(entry for row in rows if (entry := _entry(row)) is not None))


def started_in(state: str | os.PathLike[str], machine: str) -> tuple[list[str], str]:
    """The directories on this machine that runs were started in, the latest first, and `Known.problem`.

    Args:
        state: the user's state directory.
        machine: identity of this machine; directories of another one are not here.
    """
    path, place = os.path.join(state, FILE), os.path.join(state, KEPT)
    now = time.time()
    try:
        seen = kept.stamp(os.stat(path))
    except OSError:
        return [], ""
    answer = kept.read(place)
    # A journal may be a change that was not finished: SQLite knows what is to be done with it.
    if isinstance(answer, tuple) and answer[:2] == (machine, seen) and not os.path.lexists(f"{path}-journal"):
        return answer[2], ""
    known = read(state)
    found = list(dict.fromkeys(str(entry.directory) for entry in known.entries if entry.machine == machine))
    if not known.problem and kept.is_settled(seen, now):
        kept.write(place, (machine, seen, found))
    return found, known.problem


def _write(state: str | os.PathLike[str], entries: Iterable[Entry]) -> bool:
    """False when the file is no database."""
    import sqlite3
    from contextlib import closing

    path = os.path.join(state, FILE)
    if os.path.exists(path) and not os.path.isfile(path):
        return True
    rows = [
        (e.run_id, os.fsencode(e.directory), e.machine, e.host, e.user, e.started, e.pid, e.ended, e.outcome or None,
         e.last_step)
        for e in entries
    ]  # fmt: skip
    try:
        with closing(_opened(path, "rwc")) as database, database:
            if _version(database) > SCHEMA:
                return True  # it belongs to a newer solorun: not ours to write
            database.execute(_TABLE)
            database.execute(f"PRAGMA user_version = {SCHEMA}")
            database.executemany(
                f"INSERT INTO runs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "  # noqa: S608 - a constant
                "ON CONFLICT (run_id, directory) DO UPDATE SET ended = coalesce(excluded.ended, ended), "
                "outcome = coalesce(excluded.outcome, outcome), last_step = coalesce(excluded.last_step, last_step)",
                rows,
            )
    except sqlite3.OperationalError:  # locked, read-only, full: there is nothing to mend
        raise
    except sqlite3.DatabaseError:
        return False
    return True


def _opened(path: str, mode: str) -> sqlite3.Connection:
    import sqlite3
    from urllib.parse import quote

    address = f"file:{quote(os.fsencode(path))}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level="IMMEDIATE")


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _entry(row: tuple[Any, ...]) -> Entry | None:
    from pathlib import Path

    run_id, directory, machine, host, user, started, pid, ended, outcome, last_step = row
    try:
        path = Path(os.fsdecode(directory))
        if "\0" in str(path) or not (is_moment(started) and (ended is None or is_moment(ended))):
            return None
        return Entry(
            str(run_id), path, str(machine), str(host), str(user), float(started), int(pid),
            None if ended is None else float(ended), str(outcome or ""), None if last_step is None else int(last_step),
        )  # fmt: skip
    except (TypeError, ValueError, OverflowError):  # written by hand, by a program with a bug, or damaged
        return None


def _set_damaged_aside(state: str | os.PathLike[str], clock: Callable[[], float] = time.time) -> bool:
    """Give a damaged file another name, so that a new one can be begun. False when another process is at it."""
    import contextlib
    import fcntl

    fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_damaged(os.path.join(state, FILE)):  # another process was quicker, and this is its new file
            return True
        aside = f"{FILE}.damaged-{clock():.0f}-{os.getpid()}"
        os.rename(FILE, aside, src_dir_fd=fd, dst_dir_fd=fd)
        with contextlib.suppress(FileNotFoundError):  # a journal of the damaged file would be played into the new one
            os.rename(f"{FILE}-journal", f"{aside}-journal", src_dir_fd=fd, dst_dir_fd=fd)
    finally:
        os.close(fd)
    return True


def _is_damaged(path: str) -> bool:
    import sqlite3
    from contextlib import closing

    try:
        with closing(_opened(path, "ro")) as database:
            return bool(database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True
