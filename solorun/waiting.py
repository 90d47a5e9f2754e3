"""The queue of a results directory: who waits for it, since when, in which order.

Each waiting start has a ticket, a file in `waiting/` that tells who it is. The tickets' names are their order. Whoever
looks passes over the dead and the suspended, so nobody has to tidy up; taking a ticket away calls its start off. The
queue only says whose turn it is: the lock alone decides who gets in.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from solorun import process
from solorun.frozen import dataclass
from solorun.label import link_file
from solorun.owner import PID_MAX, Alive, Here, ProcessId, told
from solorun.readjson import is_moment, is_whole, read_json
from solorun.rundir import PRIVATE, WAITING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FAR_AWAY_S = 60.0
"""A waiting start on another host shows that it lives by touching its ticket; silent for so long, it is passed."""

TOUCH_EVERY_S = 10.0
_LONGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Waiter:
    """A start that waits.

    Args:
        ticket: file name of its ticket.
        process: the waiting process.
        user: login name.
        argv: the command that it will run.
        since: seconds since the epoch.
    """

    ticket: str
    process: ProcessId
    user: str
    argv: tuple[str, ...]
    since: float


def encode(waiter: Waiter) -> bytes:
    """A ticket's content: one JSON object and a newline."""
    import json

    at = waiter.process
    place = {name: getattr(at.here, name) for name in ("host", "machine", "boot", "namespace")}
    facts = {
        "schema": 1, "here": place, "pid": at.pid, "started": at.started,
        "user": waiter.user, "argv": waiter.argv, "since": waiter.since,
    }  # fmt: skip
    return json.dumps(facts).encode() + b"\n"


def decode(ticket: str, data: bytes) -> Waiter | None:
    """Read a ticket; None when it is torn or of another form."""
    try:
        raw = read_json(data)
        here = Here(*(str(raw["here"][name]) for name in ("host", "machine", "boot", "namespace")))
        at, since = ProcessId(here, raw["pid"], raw["started"]), raw["since"]
        if not (is_whole(at.pid) and 1 <= at.pid <= PID_MAX and is_whole(at.started) and is_moment(since)):
            return None
        return Waiter(ticket, at, str(raw["user"]), tuple(map(str, raw["argv"])), float(since))
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None


def counts(waiter: Waiter, touched_s: float, here: Here) -> bool:
    """Whether a waiting start is to be waited for: alive and awake, as far as can be told.

    Args:
        waiter: who.
        touched_s: seconds since its ticket was touched.
        here: this place.
    """
    place = waiter.process.here
    if place.boot != here.boot and place.machine == here.machine:
        return False
    if (place.boot, place.namespace) != (here.boot, here.namespace):
        return touched_s < FAR_AWAY_S
    seen = process.probe(waiter.process.pid)
    # A suspended one would hold up everybody behind it for ever.
    return isinstance(seen, Alive) and seen.started in (None, waiter.process.started) and seen.state not in ("T", "t")


def read_queue(directory: str | os.PathLike[str]) -> tuple[Waiter, ...]:
    """Who waits for a directory, first come first; changes nothing."""
    place = os.path.join(directory, WAITING)
    try:
        names = sorted(name for name in os.listdir(place) if not name.startswith("."))
    except OSError:
        return ()
    found = (_read(place, name) for name in names)
    return tuple(waiter for waiter in found if waiter is not None)


def _read(place: str, name: str) -> Waiter | None:
    try:
        fd = os.open(os.path.join(place, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        touched = time.time() - os.fstat(fd).st_mtime
        waiter = decode(name, os.read(fd, _LONGEST))
    except OSError:
        return None
    finally:
        os.close(fd)
    return waiter if waiter is not None and counts(waiter, touched, process.here()) else None


class Ticket:
    """One's own place in the queue, from `join` to `leave`.

    Args:
        directory: the results directory.
        name: file name of the ticket.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._path = directory / WAITING / name
        self._touched = time.monotonic()

    def ahead(self) -> tuple[Waiter, ...]:
        """Who stands before it."""
        return tuple(waiter for waiter in read_queue(self._directory) if waiter.ticket < self._path.name)

    def is_called_off(self) -> bool:
        """Whether somebody took the ticket away."""
        if time.monotonic() - self._touched > TOUCH_EVERY_S:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self._path)
        return not os.path.lexists(self._path)

    def redeem(self) -> bool:
        """Give the place up because it is our turn. False when somebody took the ticket away first: a call-off."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        except OSError:  # what we cannot remove, nobody has called off
            return True
        return True

    def leave(self) -> None:
        """Give the place up, and clear away what dead waiters left."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        sweep(self._directory)


def join(directory: Path, argv: tuple[str, ...], now: float) -> Ticket:
    """Take the last place in the queue.

    Raises:
        OSError: the directory cannot be written.
    """
    me = process.identify_self()
    name = f"{time.time_ns():020d}-{me.pid}-{os.urandom(2).hex()}.json"
    waiter = Waiter(name, me, process.user_name(os.getuid()), told(argv), now)
    place = directory / WAITING
    while True:
        place.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the last one to leave took the folder away meanwhile
            _write(place, name, encode(waiter))
            return Ticket(directory, name)


def _write(place: Path, name: str, data: bytes) -> None:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        link_file(fd, name, data)
    finally:
        os.close(fd)


def sweep(directory: Path) -> None:
    """Remove the tickets of the dead of this place, half-written ones, and the folder when it is empty."""
    place = directory / WAITING
    with contextlib.suppress(OSError):
        for path in place.iterdir():
            with contextlib.suppress(OSError):  # one that cannot be read keeps no other from being cleared
                if _is_dead(path):
                    path.unlink(missing_ok=True)
        place.rmdir()


def _is_dead(path: Path) -> bool:
    # O_NONBLOCK: a FIFO among the tickets would wait for a writer for ever.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        waiter = decode(path.name, os.read(fd, _LONGEST))
    finally:
        os.close(fd)
    if waiter is None:  # of a writer that was killed, where files cannot be written without a name
        return path.name.startswith(PRIVATE) and time.time() - path.stat().st_mtime > FAR_AWAY_S
    return not process.is_alive(waiter.process)


def call_off(directory: Path, pid: int | None) -> list[Waiter]:
    """Take tickets away: their starts end within a moment, and the live run goes on.

    Args:
        directory: the results directory.
        pid: of the waiting start; None calls off all of them.

    Returns:
        Who was called off.

    Raises:
        OSError: a ticket cannot be removed.
    """
    called = []
    for waiter in read_queue(directory):
        if pid not in (None, waiter.process.pid):
            continue
        with contextlib.suppress(FileNotFoundError):  # its turn has come meanwhile: the ticket was its own to take
            (directory / WAITING / waiter.ticket).unlink()
            called.append(waiter)
    return called


def as_rows(queue: tuple[Waiter, ...], now: float) -> list[dict[str, Any]]:
    """The queue as `--json` tells it; the keys are frozen, new ones may be added."""
    return [
        {
            "pid": waiter.process.pid,
            "host": waiter.process.here.host,
            "user": waiter.user,
            "since": waiter.since,
            "for_s": max(0.0, now - waiter.since),
            "command": list(waiter.argv),
        }
        for waiter in queue
    ]
