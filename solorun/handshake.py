"""What a start that goes on by itself tells the command that began it: one JSON line for each report.

A background start returns only when it is known what became of it. The line goes through a pipe, or through a FIFO
where the two have no common ancestor (tmux).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections.abc import Callable
from dataclasses import asdict

from solorun import errors
from solorun.errors import SolorunError, system_problem
from solorun.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Holding:
    """The run holds its directory, and its command executes."""

    run_id: str
    pid: int
    supervisor: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """The start stands in the queue of its directory.

    Args:
        ahead: how many stand before it.
        behind: who is waited for, a line.
        supervisor: PID of the waiting start.
    """

    ahead: int
    behind: str
    supervisor: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing was started.

    Args:
        kind: name of the error's class.
        what: what is wrong and where.
        next_step: what to do next.
        evidence: what was seen.
    """

    kind: str
    what: str
    next_step: str
    evidence: tuple[str, ...]

    def error(self) -> SolorunError:
        """The error as it was raised on the other side."""
        kind: type[SolorunError] = getattr(errors, self.kind, SolorunError)
        return kind(self.what, self.next_step, self.evidence)


@dataclass(frozen=True, slots=True)
class Over:
    """The run ended.

    Args:
        state: completed, interrupted, crashed or killed.
        exit_code: its exit status.
        lines: the last of what it printed.
    """

    state: str
    exit_code: int
    lines: tuple[str, ...]


Report = Holding | Waiting | Failed | Over
_KINDS: dict[str, Callable[..., Report]] = {kind.__name__: kind for kind in (Holding, Waiting, Failed, Over)}


def failure(error: BaseException) -> Failed:
    """An error as a report."""
    if isinstance(error, SolorunError):
        return Failed(type(error).__name__, error.what, error.next_step, error.evidence)
    if isinstance(error, OSError):
        return failure(system_problem(error))
    return Failed("SolorunError", f"{type(error).__name__}: {error}", "", ())


def encode(report: Report) -> bytes:
    """A report as one line."""
    return json.dumps({"report": type(report).__name__, **asdict(report)}).encode() + b"\n"


def decode(line: bytes) -> Report:
    """Read a line.

    Raises:
        ValueError: it is no report.
    """
    try:
        raw = json.loads(line)
        kind = _KINDS[raw.pop("report")]
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a report: {error!r}") from None


def teller(fd: int) -> Callable[[Report], None]:
    """The telling end; nobody listens any more once the other side has returned, and that is no error."""

    def tell(report: Report) -> None:
        with contextlib.suppress(OSError):
            os.write(fd, encode(report))

    return tell


class Listener:
    """The hearing end.

    Args:
        fd: descriptor to read from; closed with `close`.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = b""
        self.closed = False
        """The other side has ended, or closed its end."""

    def hear(self, timeout_s: float) -> Report | None:
        """The next report; None when none comes in time, or when the other side is gone."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            left = max(0.0, deadline - time.monotonic())
            if self.closed or not select.select([self._fd], [], [], left)[0]:
                return None
            data = os.read(self._fd, 1 << 16)
            self.closed = not data
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return decode(line)

    def close(self) -> None:
        """Free the descriptor."""
        os.close(self._fd)
