"""Notice at once that a name in a directory changed: inotify on Linux, kqueue on macOS, else a short wait."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import sys
from typing import Protocol

POLL_S = 0.25
_IN_CLOSE_WRITE, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_DELETE = 0x8, 0x40, 0x80, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF = 0x400, 0x800
_IN_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC


class DirectoryWatch(Protocol):
    """Waits for changes; may wake for nothing."""

    def wait(self, timeout_s: float) -> None:
        """Return when something changed, when `wake` was called, or after the timeout."""

    def rest(self, timeout_s: float) -> None:
        """Return when `wake` was called, or after the timeout; what changed until then is not told by `wait`."""

    def wake(self) -> None:
        """Let a waiting thread go on."""

    def close(self) -> None:
        """Free the descriptors."""


def watch(directory: int) -> DirectoryWatch:
    """The quickest watch that this system has for an open directory."""
    try:
        if sys.platform == "darwin":
            return _Kqueue(directory)
        else:  # noqa: RET505 - a type checker follows platforms only through if and else
            return _Inotify(directory)
    except (OSError, AttributeError):  # no watches left, or a C library without them
        pass
    return _Polling()


def _wait_for_one_of(descriptors: tuple[int, ...], timeout_s: float) -> set[int]:
    """Which of them can be read, at the latest after the timeout."""
    ready = select.poll()  # and not select(): in a trainer with more than 1,024 open files that fails
    for fd in descriptors:
        ready.register(fd, select.POLLIN)
    return {fd for fd, _ in ready.poll(timeout_s * 1000)}


class _Wakeable:
    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def rest(self, timeout_s: float) -> None:
        _wait_for_one_of((self._read,), timeout_s)

    def wake(self) -> None:
        os.write(self._write, b"x")

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class _Polling(_Wakeable):
    def wait(self, timeout_s: float) -> None:
        _wait_for_one_of((self._read,), min(timeout_s, POLL_S))


class _Inotify(_Wakeable):
    def __init__(self, directory: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        begin, add = libc.inotify_init1, libc.inotify_add_watch
        super().__init__()
        self._fd = begin(_IN_NONBLOCK_CLOEXEC)
        if self._fd < 0:
            super().close()
            raise OSError(ctypes.get_errno(), "inotify_init1")
        events = _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF
        # By descriptor, not by path: the path may already lead elsewhere.
        if add(self._fd, f"/proc/self/fd/{directory}".encode(), events) < 0:
            self.close()
            raise OSError(ctypes.get_errno(), "inotify_add_watch")

    def wait(self, timeout_s: float) -> None:
        if self._fd in _wait_for_one_of((self._fd, self._read), timeout_s):
            os.read(self._fd, 1 << 16)

    def rest(self, timeout_s: float) -> None:
        super().rest(timeout_s)
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 1 << 16)

    def close(self) -> None:
        os.close(self._fd)
        super().close()


if sys.platform == "darwin":

    class _Kqueue(_Wakeable):
        def __init__(self, directory: int) -> None:
            super().__init__()
            try:
                self._queue = select.kqueue()
            except BaseException:
                super().close()
                raise
            notes = select.KQ_NOTE_WRITE | select.KQ_NOTE_DELETE | select.KQ_NOTE_RENAME
            add = select.KQ_EV_ADD | select.KQ_EV_CLEAR
            changes = [
                select.kevent(directory, select.KQ_FILTER_VNODE, add, notes),
                select.kevent(self._read, select.KQ_FILTER_READ, select.KQ_EV_ADD),
            ]
            try:
                self._queue.control(changes, 0)
            except BaseException:
                self.close()
                raise

        def wait(self, timeout_s: float) -> None:
            self._queue.control(None, 8, timeout_s)

        def rest(self, timeout_s: float) -> None:
            super().rest(timeout_s)
            self._queue.control(None, 8, 0)

        def close(self) -> None:
            self._queue.close()
            super().close()
