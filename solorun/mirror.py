"""Copies a log to where a person watches, and never waits for that place.

A terminal that was stopped with Ctrl-S, or an SSH line that hangs, must not keep a supervisor from reaping its run and
letting the directory go.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time

from solorun.rundir import LOG

_BLOCK = 1 << 16
_PIPE_CHUNK = 512
"""POSIX's smallest PIPE_BUF: a pipe that is ready takes so much without waiting."""


class Mirror:
    """The copy of a directory's log, from a position on.

    Args:
        directory: descriptor of the results directory.
        start: byte of the log to begin at.
        output: descriptor to copy to; stays the caller's.

    Raises:
        OSError: the log cannot be read.
    """

    def __init__(self, directory: int, start: int, output: int) -> None:
        self._log = os.open(LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        self._position = start
        self._own = _reopened_terminal(output)
        self._output = output if self._own < 0 else self._own
        self._chunk = _BLOCK if self._own >= 0 or _is_plain(output) else _PIPE_CHUNK

    def copy(self) -> bool:
        """Copy what the output takes at once. False when something is left over."""
        try:
            while data := os.pread(self._log, self._chunk, self._position):
                if not self._is_ready():
                    return False
                self._position += os.write(self._output, data)
            # Emptied by hand, it grows from its beginning again.
            self._position = min(self._position, os.fstat(self._log).st_size)
        except BlockingIOError:
            return False
        except OSError:  # the terminal is gone; the run goes on
            return True
        return True

    def finish(self, patience_s: float) -> None:
        """Copy the rest, for at most so many seconds."""
        deadline = time.monotonic() + patience_s
        while not self.copy() and time.monotonic() < deadline:
            select.select([], [], [], 0.02)

    def close(self) -> None:
        """Free the descriptors."""
        for fd in {self._log, self._own} - {-1}:
            os.close(fd)
        self._log = self._own = -1

    def _is_ready(self) -> bool:
        # Not poll(): on macOS that knows no terminals, and calls each of them ready.
        return bool(select.select([], [self._output], [], 0)[1])


def _reopened_terminal(output: int) -> int:
    """The same terminal once more, without waiting: set on the shared one, that would change the shell's too."""
    with contextlib.suppress(OSError):
        if os.isatty(output):
            return os.open(os.ttyname(output), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return -1


def _is_plain(output: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(output).st_mode)
    except OSError:
        return False
