"""Files that appear under their final name whole or not at all.

A writer fills a private file beside the final name, makes it durable and renames it. While it writes it holds an
flock on the private file, which the kernel drops when the writer dies: a private file whose flock is free is a
dead writer's, and that proof, not a PID or an age, is what lets it be deleted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# macOS refuses one write of 2 GiB or more, and Linux cuts it short.
_BLOCK = 1 << 26
_EARLY = 1 << 25
_KNOW_ONLY_FSYNC = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
"""What network disks answer to F_FULLFSYNC."""

_REMEDIES = {
    errno.ENOSPC: "free space on that disk, or choose another directory",
    errno.EDQUOT: "free space within your quota, or choose another directory",
    errno.EACCES: "make it accessible to this user, or choose another place",
    errno.EPERM: "make it accessible to this user, or choose another place",
    errno.EROFS: "the disk is read-only: choose another directory",
    errno.ENOENT: "check the path; it may have been moved or deleted",
    errno.ENOTDIR: "a part of that path is a file: correct the path",
    errno.EISDIR: "that is a directory: correct the path",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.EIO: "the disk reports a fault: look at the system log, and choose another disk",
}


def remedy(error: OSError) -> str:
    """The next step for a person whose disk answered with this error."""
    if error.errno == errno.EFBIG:
        return remedy_of_size()
    return _REMEDIES.get(error.errno or 0, "look at the disk and the directory, then start again")


def largest_file() -> int | None:
    """Bytes that this process may write into one file; None where only the file system limits it."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def remedy_of_size() -> str:
    """The next step where a file would be larger than it may be; names the limit."""
    limit = largest_file()
    if limit is None:
        return "the file system takes no file of that size: choose another disk"
    return f"raise the file size limit of {limit:,} bytes (ulimit -f), or choose another disk"


def reason(error: OSError) -> str:
    """What the disk said, without the path and the number."""
    return (error.strerror or str(error)).lower()


def lacks_room(error: OSError) -> bool:
    """Whether the disk, or a quota, is full: what was refused can be done when there is room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class PrivateFile:
    """A file being written under its private name.

    Args:
        descriptor: open for reading and writing, its flock held.
        path: the private name.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor = descriptor
        self.path = path
        self._appended = self._sent = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append all of data (a flat buffer of bytes); raises OSError."""
        rest = memoryview(data)
        while rest:
            # A disk that fills up in mid-block answers with a short count first and the error on the next call.
            count = os.write(self.descriptor, rest[:_BLOCK])
            rest = rest[count:]
            self._appended += count
        if self._appended - self._sent >= _EARLY:
            self._send_early()

    def _send_early(self) -> None:
        """Have the disk begin now: a sync that finds everything still in memory would be one long wait."""
        advise = getattr(os, "posix_fadvise", None)  # not on macOS
        if advise is not None:
            with suppress(OSError):
                # Linux writes out what is dirty; what is on the disk by then leaves room for the training's own data.
                advise(self.descriptor, self._sent, self._appended - self._sent, os.POSIX_FADV_DONTNEED)
        self._sent = self._appended

    def write_at(self, offset: int, data: bytes) -> None:
        """Overwrite bytes from offset on, leaving the place for the next write alone; raises OSError."""
        rest = memoryview(data)
        while rest:
            count = os.pwrite(self.descriptor, rest, offset)
            rest, offset = rest[count:], offset + count

    def require_in_place(self) -> None:
        """Raise FileNotFoundError when its directory was moved away, and maybe another one put in its place."""
        if not os.path.samestat(os.fstat(self.descriptor), os.stat(self.path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def sync(self) -> None:
        """Return once the bytes would survive a power cut; raises OSError."""
        _sync(self.descriptor)


@contextmanager
def replacing(final: Path) -> Iterator[PrivateFile]:
    """A private file that takes the final name when the block ends well, and is gone when it does not.

    Args:
        final: the name the file shall have; what bears it until then stays whole.

    Returns:
        The open private file, in the same directory.

    Raises:
        OSError: the disk refused; the private file is gone and the final name untouched.
    """
    file = _create(final)
    try:
        yield file
        file.sync()
        file.path.replace(final)
    except BaseException:
        with suppress(OSError):
            file.path.unlink()
        raise
    finally:
        os.close(file.descriptor)
    sync_directory(final.parent)


@contextmanager
def nameless(beside: Path) -> Iterator[BinaryIO]:
    """An empty file without a name, for reading and writing; it is gone with whoever writes it.

    Args:
        beside: a final name in its directory. Files without a name from the beginning are not everywhere: a kill before
            this one has lost its name leaves a private file, which `clear_dead` knows by the final name.

    Raises:
        OSError: the disk refused.
    """
    file = _create(beside)
    with os.fdopen(file.descriptor, "w+b") as stream:
        file.path.unlink()
        yield stream


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable: without it a power cut may undo a rename; raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(descriptor)
    except OSError as error:
        # Some network disks have no such call; there the rename is as durable as it gets.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        try:
            # On macOS fsync stops at the drive's cache.
            fcntl.fcntl(descriptor, full)
            return
        except OSError as error:
            # What a failing disk could not take, a plain fsync might afterwards call done.
            if error.errno not in _KNOW_ONLY_FSYNC:
                raise
    os.fsync(descriptor)


def clear_dead(directory: Path, final: str) -> list[Path]:
    """Delete the private files of writers that are gone.

    Args:
        directory: where they lie.
        final: regular expression of the final names whose private files are ours to judge.

    Returns:
        The paths deleted. A file that is in use, unreadable or not ours stays.
    """
    pattern = re.compile(rf"\.(?:{final})\.\d+-[0-9a-f]{{8}}\.tmp")
    try:
        names = sorted(name for name in os.listdir(directory) if pattern.fullmatch(name))
    except OSError:
        return []
    return [directory / name for name in names if _delete_if_dead(directory / name)]


def _create(final: Path) -> PrivateFile:
    while True:
        path = final.with_name(f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have cleared the file between its creation and its flock.
            if os.fstat(descriptor).st_nlink:
                return PrivateFile(descriptor, path)
        except BlockingIOError:
            pass
        except OSError:
            # This disk has no flock: then no one can prove the writer dead, and no one deletes the file.
            return PrivateFile(descriptor, path)
        os.close(descriptor)


def _delete_if_dead(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The name may have passed to another file since it was opened.
        if os.path.samestat(found, path.lstat()):
            path.unlink()
            return True
    except OSError:
        pass
    finally:
        with suppress(OSError):  # a network disk tells what the dead writer's bytes met: nobody needs them
            os.close(descriptor)
    return False
