"""What was worked out once, kept in a small file of the user's own, to be had sooner. Never a truth.

Whoever keeps an answer keeps with it the stamps of the files that it came from, and works it out anew where one of them
has changed. So a kept file may be torn, damaged, foreign or gone at any time: the answer stays the same.
"""

from __future__ import annotations

import marshal
import os
import stat
import sys
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SETTLED_S = 3.0
"""A file written less than this ago may be written again within one tick of the disk's clock, and no stamp shows it."""

_LARGEST = 1 << 26

Stamp = tuple[int, int]


def stamp(facts: os.stat_result) -> Stamp:
    """Inode and time of change, of which one is another whenever a file, or the list of names in a directory, is.

    Any write moves the time of change, also one that puts back size and time of modification, and nobody can set it.
    """
    return facts.st_ino, facts.st_ctime_ns


def is_settled(seen: Stamp, now: float) -> bool:
    """Whether this stamp tells of every later change.

    Args:
        seen: of a file.
        now: seconds since the epoch, taken before the file was looked at.
    """
    return seen[1] < (now - SETTLED_S) * 1e9


def read(path: str) -> Any:
    """What was kept; None when there is nothing, or nothing that this user wrote whole with this Python.

    Args:
        path: the file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        facts = os.fstat(fd)
        ours = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o077
        data = os.read(fd, facts.st_size) if ours and facts.st_size <= _LARGEST else b""
    except OSError:
        return None
    finally:
        os.close(fd)
    head, _, body = data.partition(b"\n")
    if head != _head(body):
        return None
    try:
        return marshal.loads(body)  # noqa: S302 - as safe as the compiled modules that lie beside ours
    except (EOFError, ValueError, TypeError):
        return None


def write(path: str, value: Any) -> bool:
    """Keep a value of plain Python types. False when that was not possible; never an exception.

    Args:
        path: the file; its directory is made if it is missing, and nobody else may look into it.
        value: anything that `marshal` takes, as it takes the compiled modules of this Python.
    """
    private = f"{path}.{os.getpid()}.tmp"
    try:
        body = marshal.dumps(value)
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        fd = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError):
        return False
    try:
        with open(fd, "wb") as file:
            file.write(_head(body) + b"\n" + body)
        os.rename(private, path)
    except OSError:
        _forget(private)
        return False
    return True


def sweep(directory: str, before: float) -> None:
    """Remove what was kept in a directory and not written anew since a time; never an exception.

    Args:
        directory: nothing but kept files lies in it.
        before: seconds since the epoch.
    """
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for path in (os.path.join(directory, name) for name in names):
        try:
            if os.lstat(path).st_mtime < before:
                os.unlink(path)
        except OSError:
            continue


def _head(body: bytes) -> bytes:
    return b"solorun kept 1 %x %08x" % (sys.hexversion, zlib.crc32(body))


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return
