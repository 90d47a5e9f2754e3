"""The Python side of `shim.c`: builds it, arms it, and reads what it struck."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REST, RECORD, KILL_BEFORE, KILL_AFTER, KILL_MIDDLE, FAIL_ONCE, FAIL_ON, SHORT_WRITE = range(8)
OPEN, CREATE, WRITE, SYNC, NAME, REMOVE, CLOSE, READ, LOCK, LIST, ALLOCATE = (1 << bit for bit in range(11))
WITHOUT_UNNAMED, WITHOUT_LINKS, FIRST_THREAD, OTHER_THREADS = 1, 2, 4, 8

KILLS = (KILL_BEFORE, KILL_AFTER, KILL_MIDDLE)

SUITS = {
    errno.ENOSPC: CREATE | WRITE | ALLOCATE | SYNC | NAME | CLOSE,
    errno.EDQUOT: CREATE | WRITE | ALLOCATE | SYNC | NAME | CLOSE,
    errno.EIO: OPEN | CREATE | WRITE | ALLOCATE | SYNC | NAME | REMOVE | CLOSE | READ | LIST,
    errno.EROFS: CREATE | WRITE | NAME | REMOVE,
    errno.EACCES: OPEN | CREATE | NAME | REMOVE | LIST,
    errno.EINTR: OPEN | CREATE | WRITE | SYNC | NAME | REMOVE | CLOSE | READ | LOCK | LIST,
    errno.EMFILE: OPEN | CREATE | LIST,
}
"""Which kinds of calls a system answers with which error."""

LASTING = {number: kinds & ~CLOSE for number, kinds in SUITS.items() if number != errno.EINTR}
"""Errors that stay from one call on: a full disk, a dead one, one that went read-only."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to a victim.

    Args:
        what: KILL_BEFORE ... SHORT_WRITE, or RECORD.
        at: which call it strikes, counted from 1.
        error: number of the error; 0 where none is given.
    """

    what: int
    at: int
    error: int = 0

    def __str__(self) -> str:
        """As a count is called."""
        return {
            RECORD: "none",
            KILL_BEFORE: "kill before",
            KILL_AFTER: "kill after",
            KILL_MIDDLE: "kill in the middle of",
            FAIL_ONCE: f"{errno.errorcode.get(self.error)} once",
            FAIL_ON: f"{errno.errorcode.get(self.error)} from then on",
            SHORT_WRITE: "short write",
        }[self.what]


@dataclass(frozen=True, slots=True)
class Call:
    """A call that counted: its name, kind, path below the scope, and whether it was struck."""

    name: str
    kind: int
    path: str
    struck: bool


def faults_for(calls: list[Call]) -> Iterator[Fault]:
    """Everything that can be done to a recorded sequence."""
    for at, call in enumerate(calls, 1):
        yield Fault(KILL_BEFORE, at)
        if call.kind not in (OPEN, READ, CLOSE, LOCK, LIST):  # else it is the same as before the next one
            yield Fault(KILL_AFTER, at)
        if call.kind == WRITE and call.name != "ftruncate":
            yield Fault(KILL_MIDDLE, at)
            yield Fault(SHORT_WRITE, at)
        for number, kinds in SUITS.items():
            if kinds & call.kind:
                yield Fault(FAIL_ONCE, at, number)
                if LASTING.get(number, 0) & call.kind:
                    yield Fault(FAIL_ON, at, number)


def why_not() -> str:
    """Why the attack cannot be made here; empty where it can."""
    if not sys.platform.startswith("linux"):
        return "calls are intercepted on Linux alone"
    return "" if shutil.which("cc") else "there is no C compiler"


def build(place: Path) -> Path:
    """Compile the shim into a directory; its path."""
    source, library = Path(__file__).with_name("shim.c"), place / "shim.so"
    subprocess.run(["cc", "-O1", "-fPIC", "-shared", "-o", library, source, "-ldl"], check=True)
    return library


class Shim:
    """The shim that this process was started with.

    Args:
        board: file in which it counts.
    """

    def __init__(self, board: Path) -> None:
        self._library = ctypes.CDLL(None)
        self._board = board

    def arm(self, fault: Fault, flags: int, scope: Path) -> None:
        """From now on, and in what is forked from now on."""
        words = str(self._board).encode(), str(scope).encode()
        kinds = LASTING.get(fault.error, 0)
        self._library.faults_arm(fault.what, fault.at, fault.error, kinds, flags, *words)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """What this thread does meanwhile does not count."""
        self._library.faults_rest(1)
        yield
        self._library.faults_rest(0)

    def clear(self) -> None:
        """Forget what was counted."""
        self._board.unlink(missing_ok=True)

    def calls(self) -> list[Call]:
        """What counted, in order."""
        data = self._board.read_bytes()
        written = int.from_bytes(data[8:12], sys.byteorder)
        lines = data[12 : 12 + written].decode("utf-8", "replace").splitlines()
        parts = (line.split("\t", 4) for line in lines)
        return [Call(name, int(kind), path, struck == "1") for _, name, kind, struck, path in parts]


def environment(library: Path, fault: Fault, flags: int, board: Path, scope: Path) -> dict[str, str]:
    """What arms the shim in a command of its own, and in all that it starts."""
    kinds = LASTING.get(fault.error, 0)
    plan = f"{fault.what}:{fault.at}:{fault.error}:{kinds}:{flags}:{board}:{scope}"
    return {**os.environ, "LD_PRELOAD": str(library), "FAULTS": plan}
