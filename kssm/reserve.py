"""Room for one checkpoint, kept on the disk for the day it is full: `checkpoint.reserve` in the results directory.

It belongs to the run that holds the directory. What a killed run left is the next one's from its beginning; a run that
ends takes it away. Deleting it by hand costs nothing but the reserve, which comes back with the next save.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NAME = "checkpoint.reserve"

MARGIN = 1 << 18
"""Bytes beyond a checkpoint, so that log and journal can tell of the save that the reserve made room for."""

_BLOCK = 1 << 22
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Reserve:
    """The reserve of one results directory, which is held by descriptor: a directory moved away keeps its own.

    Args:
        directory: the results directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Take the reserve away: a run that is over needs none, and nobody shall wonder at a large file."""
        if self._directory >= 0:
            self.free()
            os.close(self._directory)
        self._directory = -1

    @property
    def room(self) -> int:
        """Bytes that may still be written on the disk, the reserve not counted; quotas cannot be seen from here.

        0 where the disk does not say, since a look must not end a run that waits.
        """
        try:
            facts = os.fstatvfs(self._directory)
        except OSError:
            return 0
        return facts.f_bavail * facts.f_frsize

    def free(self) -> bool:
        """Give its room back; whether there was any."""
        with suppress(OSError):
            found = os.stat(NAME, dir_fd=self._directory, follow_symlinks=False)
            if _is_ours(found):
                os.unlink(NAME, dir_fd=self._directory)
                return found.st_blocks > 0
        return False

    def keep(self, size: int, *, beside: int = 0, between: Callable[[], None] = lambda: None) -> None:
        """Have a reserve of at least so many bytes; one that is there is grown, and cut where it is twice that.

        Args:
            size: bytes of a checkpoint; a margin is added.
            beside: bytes that must fit beside it, and are left free. A quota shows only to who really takes the room.
            between: called before each block that has to be written; what it raises leaves no reserve.

        Raises:
            OSError: there is no room, and no reserve then; or something else bears its name, which stays.
        """
        wanted = size + MARGIN
        descriptor = os.open(NAME, _FLAGS | os.O_CREAT, 0o600, dir_fd=self._directory)
        try:
            found = os.fstat(descriptor)
            if not _is_ours(found):  # never to be written over: it may be a name of another file
                raise FileExistsError(errno.EEXIST, f"{NAME} is not a reserve")
            if beside or not wanted <= min(found.st_size, found.st_blocks * 512) <= 2 * wanted:
                self._take(descriptor, wanted, beside, between)
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int, wanted: int, beside: int, between: Callable[[], None]) -> None:
        try:
            _allocate(descriptor, wanted + beside, between)
            os.ftruncate(descriptor, wanted)
        except BaseException:
            self.free()  # half a reserve would only fill the disk
            raise


def _is_ours(found: os.stat_result) -> bool:
    """Whether this can be a reserve: no link to, and no second name of, a file that somebody needs."""
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= 1


def _allocate(descriptor: int, size: int, between: Callable[[], None]) -> None:
    allocate = getattr(os, "posix_fallocate", None)  # not on macOS
    if allocate is not None:
        try:
            allocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    # Zeros that are really written: a hole would reserve nothing.
    zeros, at = memoryview(bytes(_BLOCK)), 0
    while at < size:
        between()
        at += os.pwrite(descriptor, zeros[: size - at], at)
    os.fsync(descriptor)
