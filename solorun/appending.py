"""Files of a results directory that are appended to, or read from, only where they are plain files."""

from __future__ import annotations

import errno
import os
import stat


def open_to_append(directory: int, name: str, flags: int = os.O_WRONLY) -> int:
    """Open a file to append to, made if it is missing; its descriptor.

    A link is followed where its owner may decide where this user writes: the user, root, or who owns the directory.
    Else somebody who may write in the directory could have a run append to any file of its user.

    Args:
        directory: descriptor of the results directory.
        name: file name in it.
        flags: O_WRONLY or O_RDWR.

    Raises:
        OSError: it cannot be written; ENXIO where it is no plain file, or somebody else's link.
    """
    # O_NONBLOCK: a FIFO of this name would wait for a reader for ever, while the directory is locked.
    flags |= os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW, 0o666, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK):
            raise
        if not _is_trusted_link(directory, name):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), name) from None
        fd = os.open(name, flags, 0o666, dir_fd=directory)
    try:
        require_plain(fd, name)
        os.set_blocking(fd, True)
    except OSError:
        os.close(fd)
        raise
    return fd


def _is_trusted_link(directory: int, name: str) -> bool:
    owner = os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid
    return owner in (os.geteuid(), 0, os.fstat(directory).st_uid)


def require_plain(fd: int, name: str) -> None:
    """Refuse what is no file: a FIFO never ends when it is read, nor does a device such as /dev/full.

    Raises:
        OSError: ENXIO.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), name)
