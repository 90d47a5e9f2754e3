"""The log of a run: appending to it, its last lines, and following it across rotation and new runs."""

from __future__ import annotations

import codecs
import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from solorun.appending import open_to_append, require_plain
from solorun.rundir import LOG

_BLOCK = 1 << 16
_USUAL_LINE = 1 << 12
_LONGEST_TAIL = 1 << 20


class LogFile:
    """The appending end of `training.log`, opened only after the lock is held.

    Args:
        directory: descriptor of the results directory.

    Raises:
        OSError: it cannot be written; ENXIO where it is no plain file.
    """

    def __init__(self, directory: int) -> None:
        self.fd = open_to_append(directory, LOG)  # blocking: the command writes here too, and must not meet EAGAIN
        self.is_stdout = _same_file(self.fd, 1)
        """Under a supervisor the standard output already is the log: what is printed must not be logged again."""
        self._lost = 0

    def write(self, text: str) -> None:
        """Append a line. A log that cannot be written must not end the run; what it cost is told when it can be."""
        data = text.encode("utf-8", "replace") + b"\n"
        if self._lost:  # the first of them may have been cut in the middle
            data = b"\nsolorun: %d lines are missing here: the log could not be written\n" % self._lost + data
        try:
            if os.write(self.fd, data) == len(data):  # a disk that fills up takes a part
                self._lost = 0
                return
        except OSError:
            pass
        self._lost += 1

    def remark(self, text: str) -> None:
        """Append a line about the run and leave the log's age as it is: a warning must not make a run look alive."""
        try:
            before = os.fstat(self.fd)
            self.write(text)
            os.utime(self.fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        except OSError:  # somebody else's file: its age may only be set to now
            return

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # a network disk tells of a line that it lost
            os.close(self.fd)
        self.fd = -1  # the number may soon be another file's


def _same_file(one: int, other: int) -> bool:
    try:
        a, b = os.fstat(one), os.fstat(other)
    except OSError:
        return False
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def last_lines(path: Path, count: int, before: int | None = None) -> list[str]:
    """The last lines of a file, read from its end: as fast for 10 GB as for 10 lines, or for one line of 10 GB.

    Of a line that begins further back than 4 KiB for each wanted line, and 1 MiB, only the end is given, after "... ".

    Args:
        path: the log.
        count: how many.
        before: only what stands before this byte; None reads to the end.

    Raises:
        OSError: the file cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        require_plain(fd, LOG)
        return tail(fd, count, before=before)
    finally:
        os.close(fd)


def tail(fd: int, count: int, *, start: int = 0, before: int | None = None) -> list[str]:
    """The last lines of an open file, none of them from before `start`.

    Args:
        fd: descriptor to read from.
        count: how many.
        start: first byte that counts.
        before: only what stands before this byte; None reads to the end.

    Raises:
        OSError: it cannot be read.
    """
    end = os.fstat(fd).st_size
    position = end if before is None else min(before, end)
    # A progress bar without line feeds, or a crash, may leave a line of gigabytes: so far back, and no further.
    first = max(start, position - max(_LONGEST_TAIL, count * _USUAL_LINE))
    blocks: list[bytes] = []
    feeds = 0
    while position > first and feeds <= count:
        step = min(_BLOCK, position - first)
        position -= step
        blocks.append(os.pread(fd, step, position))
        feeds += blocks[-1].count(b"\n")
    lines = b"".join(reversed(blocks)).split(b"\n")
    if not lines[-1]:
        lines.pop()
    if lines and position > start and feeds <= count:
        lines[0] = b"... " + lines[0][-_USUAL_LINE:]
    return [line.decode("utf-8", "replace") for line in lines[-count:]] if count else []


def follow(path: Path, until: Callable[[], bool], *, poll_s: float = 0.2, start: int | None = None) -> Iterator[str]:
    """Text as it is appended, across truncation, rotation and files that appear later.

    Args:
        path: the log.
        until: asked whenever nothing new has come; True ends the following.
        poll_s: seconds between looks.
        start: byte to begin at; None begins after what is there already.
    """
    file, position = -1, 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may arrive in two halves
    try:
        while True:
            if file < 0:
                file, position = _reopen(path, start)
                decoder.reset()
            start = 0
            data = os.pread(file, _BLOCK, position) if file >= 0 else b""
            if data:
                position += len(data)
                yield decoder.decode(data)
            elif file >= 0 and _was_replaced(path, file, position):
                os.close(file)
                file = -1
            elif until():
                return
            else:
                time.sleep(poll_s)
    finally:
        if file >= 0:
            os.close(file)


def _reopen(path: Path, start: int | None) -> tuple[int, int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1, 0
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return -1, 0
    return fd, os.fstat(fd).st_size if start is None else start


def _was_replaced(path: Path, fd: int, position: int) -> bool:
    try:
        now, opened = path.stat(), os.fstat(fd)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino) or now.st_size < position


def for_terminal(text: str) -> str:
    """The text without control characters but newline, tab and carriage return: a log must not command a terminal."""
    return "".join(c if c in "\n\t\r" or (c.isprintable()) else "�" for c in text)
