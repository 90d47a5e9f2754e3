"""The kernel's own lock on a directory: an exclusive `flock` on its descriptor, or on a guard file in it."""

from __future__ import annotations

import errno
import fcntl
import os

from solorun.rundir import GUARD

_CANNOT_FLOCK = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF, errno.EISDIR, errno.ENOLCK}


def open_closed_streams() -> None:
    """Open what was closed (`... >&-`) on /dev/null: else lock or log would get the number of a stream."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is the one that was closed


def flock(directory: int) -> int | None:
    """Lock an open directory.

    Returns:
        The descriptor that now carries the lock: the directory's own, or that of its guard file where the file system
        cannot lock directories; None when another process has it.

    Raises:
        OSError: it can be locked neither way.
    """
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in _CANNOT_FLOCK:
            raise
        return _flock_guard(directory)
    return directory


def _flock_guard(directory: int) -> int | None:
    guard = os.open(GUARD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666, dir_fd=directory)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(guard)
        return None
    except BaseException:
        os.close(guard)
        raise
    return guard


def guard_identity(directory: int) -> tuple[int, int] | None:
    """Device and inode of an open directory's guard file; None when it has none."""
    try:
        facts = os.stat(GUARD, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def identity(place: int | str) -> tuple[int, int]:
    """Device and inode of a path or descriptor.

    Raises:
        OSError: nothing is there.
    """
    facts = os.stat(place)
    return facts.st_dev, facts.st_ino
