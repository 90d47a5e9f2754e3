"""The files of the lock, by the directory's descriptor: label and record, read, judged, written, taken away."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import time

from solorun import process
from solorun.owner import Free, Gone, Label, Owner, Stale, Unknown, Verdict, decode_owner, judge, parse_label
from solorun.rundir import LABEL, OWNER, PRIVATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Placed(Protocol):
        """What was written down about a run of one directory: `training.owner.json`, `run.json`."""

        @property
        def directory(self) -> str:
            """Absolute path of that directory."""

        @property
        def directory_inode(self) -> int:
            """Its inode; 0 when it was not written down."""


EMPTY_GRACE_S = 0.25
"""How long an empty or garbled label may be a writer's between creating and writing (step 3)."""

_O_TMPFILE: int = getattr(os, "O_TMPFILE", 0)
# File systems without unnamed files say the first four (old kernels EISDIR), a missing /proc the last.
_CANNOT_BE_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.EPERM, errno.ENOENT}
_NO_RECORD = {
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENXIO, errno.EINVAL,
    errno.EAGAIN, errno.EOPNOTSUPP, errno.ENODEV, errno.ENAMETOOLONG,
}  # fmt: skip
"""What the system answers, today and tomorrow, where there is no record, one that is hidden, or no file."""

_serial = itertools.count()


def read_label(directory: int) -> Label | Unknown | None:
    """What stands at `training.lock`, waiting a moment while an old-style writer may be between create and write."""
    deadline = time.monotonic() + EMPTY_GRACE_S
    while True:
        found = _read_label_once(directory)
        if not isinstance(found, Label) or found.pid is not None or not found.inode or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


def read_owner(directory: int) -> Owner | None:
    """The record, None when there is none that can be read (a torn one tells nothing; the label then decides).

    Raises:
        OSError: it stands there and cannot be read for the moment: without it the label of a run on another host, or in
            a container, would be judged by what its PID means here.
    """
    try:
        data = _read(directory, OWNER)
    except OSError as error:
        if error.errno not in _NO_RECORD:
            raise
        return None
    try:
        return decode_owner(data) if data else None
    except ValueError:
        return None


def look(path: str | os.PathLike[str]) -> Verdict:
    """Judge a directory without locking or changing anything.

    Raises:
        OSError: the directory is missing, is not one, or may not be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return look_at(fd)
    finally:
        os.close(fd)


def look_at(directory: int) -> Verdict:
    """The same for an open directory.

    Raises:
        OSError: its record cannot be read for the moment.
    """
    return judge_directory(directory, read_owner(directory))


def judge_directory(directory: int, owner: Owner | None) -> Verdict:
    """The verdict over what stands in an open directory, given its record."""
    return judge_found(directory, read_label(directory), owner)


def judge_found(directory: int, label: Label | Unknown | None, owner: Owner | None) -> Verdict:
    """The same for a label that was read already."""
    if isinstance(label, Unknown):
        return label
    if label is None and owner is None:
        return Free()
    pid = label.pid if label and label.pid else owner.process.pid if owner else 0
    here = process.here()
    copied = owner is not None and is_copy(directory, owner)
    verdict = judge(label, owner, process.probe(pid) if pid else Gone(), here, is_copy=copied)
    if isinstance(verdict, Stale) and owner is not None and not copied and pid != owner.process.pid:
        # The label of a dead stranger proves nothing about the run that the record tells of.
        recorded = judge(None, owner, process.probe(owner.process.pid), here)
        return verdict if isinstance(recorded, Stale) else recorded
    return verdict


def is_copy(directory: int, told: Placed) -> bool:
    """Whether the record tells of another directory that still exists under its own path."""
    if told.directory_inode in (0, os.fstat(directory).st_ino):
        return False
    try:
        return os.stat(told.directory).st_ino == told.directory_inode
    except (OSError, ValueError):
        return False


def clear(directory: int, stale: Stale) -> bool:
    """Remove a stale label and record. False when something else stood there by the time we reached for it."""
    if stale.label is not None and not take_away(directory, stale.label):
        return False
    unlink(directory, OWNER)
    return True


def kept_by(directory: int) -> str:
    """The user who may remove what stands of label and record, where the caller may not; empty where he may.

    Where the caller may not write that is the directory's owner; in one with the sticky bit it is whose file it is.
    What keeps its owner or root from writing, as a disk gone read-only does, keeps everybody: nobody is to be asked.
    """
    place, me = os.fstat(directory), os.geteuid()
    if me in (0, place.st_uid) or os.fstatvfs(directory).f_flag & os.ST_RDONLY:
        return ""
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=directory):
        return process.user_name(place.st_uid)
    if not place.st_mode & stat.S_ISVTX:
        return ""
    for name in (LABEL, OWNER):
        with contextlib.suppress(OSError):
            whose = os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid
            if whose != me:
                return process.user_name(whose)
    return ""


def take_away(directory: int, judged: Label) -> bool:
    """Remove exactly the label that was judged. False when it was gone or another one by then."""
    # Renamed first, checked then: between judging and unlinking, a new owner may have put up a live label.
    private = _private_name()
    try:
        os.rename(LABEL, private, src_dir_fd=directory, dst_dir_fd=directory)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(os.stat(private, dir_fd=directory, follow_symlinks=False).st_mode):
        # A directory, a FIFO, a link: kept for its owner under a name that blocks nobody.
        aside = f"{LABEL}.not-a-label-{os.getpid()}-{next(_serial)}"
        os.rename(private, aside, src_dir_fd=directory, dst_dir_fd=directory)
        return not judged.inode
    if read_plain(directory, private) == (judged.inode, judged.text):
        _discard(directory, private)
        return True
    _put_back(directory, private)
    return False


def _put_back(directory: int, private: str) -> None:
    """Give a label its name again, unless yet another one stands there already: theirs is the newer one."""
    try:
        os.link(private, LABEL, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        pass
    except OSError:  # no hard links here
        create_exclusively(directory, read_plain(directory, private)[1])
    _discard(directory, private)


def _read_label_once(directory: int) -> Label | Unknown | None:
    try:
        # O_NONBLOCK: a FIFO in the label's place would block for ever; O_NOFOLLOW: a link is not a label.
        fd = os.open(LABEL, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _read_linked_label(directory, error)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            return Label(None, b"(not a plain file)", 0, facts.st_mtime)
        text = os.read(fd, 64)
        return Label(parse_label(text), text, facts.st_ino, facts.st_mtime)
    except OSError as error:
        return _unreadable(error)
    finally:
        os.close(fd)


def _read_linked_label(directory: int, error: OSError) -> Label | Unknown:
    if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EOPNOTSUPP):  # a socket: the last two
        return _unreadable(error)
    pid = parse_label(_read_small(directory, LABEL))
    if pid is not None and not isinstance(process.probe(pid), Gone):
        return Unknown(f"training.lock is a symbolic link to a file that names the live PID {pid}")
    return Label(None, b"(a symbolic link)", 0, 0.0)


def _unreadable(error: OSError) -> Unknown:
    return Unknown(f"training.lock cannot be read: {error.strerror}", passing=not isinstance(error, PermissionError))


def _read(directory: int, name: str) -> bytes:
    """The first 256 KiB of a file."""
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, 1 << 18)
    except OSError as error:
        error.filename = name
        raise
    finally:
        os.close(fd)


def _read_small(directory: int, name: str) -> bytes:
    """The same, empty when it cannot be read."""
    try:
        return _read(directory, name)
    except OSError:
        return b""


def read_plain(directory: int, name: str) -> tuple[int, bytes]:
    """Inode and first bytes of a file, (0, b"") when it is not there."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return 0, b""
    try:
        return os.fstat(fd).st_ino, os.read(fd, 64)
    except OSError:
        return 0, b""
    finally:
        os.close(fd)


def inode_of(directory: int, name: str) -> int:
    """Inode of a name, 0 when it is not there."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino
    except OSError:
        return 0


def create_exclusively(directory: int, text: bytes) -> bool:
    """Create the label where there are no hard links. False when one stands there.

    Raises:
        OSError: it cannot be written whole; nothing is left.
    """
    # File systems without hard links (exFAT, some FUSE): exclusive, though empty for a moment.
    try:
        fd = os.open(LABEL, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=directory)
    except FileExistsError:
        return False
    try:
        _write_and_close(fd, text)
    except BaseException:
        _discard(directory, LABEL)
        raise
    return True


def link_file(directory: int, name: str, data: bytes) -> int | None:
    """Create a file whole under a name that nothing bears; its inode, None when something stands there.

    Raises:
        OSError: it cannot be written whole or linked; nothing is left.
    """
    try:
        return _link_unnamed(directory, name, data)
    except FileExistsError:
        return None
    except OSError as error:
        if error.errno not in _CANNOT_BE_UNNAMED:
            raise
    private, inode = write_private(directory, data)
    try:
        os.link(private, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        return None
    finally:
        _discard(directory, private)
    return inode


def _link_unnamed(directory: int, name: str, data: bytes) -> int:
    """Linux: a file without a name until it is whole. A killed writer leaves nothing, and it is two steps less."""
    if not _O_TMPFILE:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    fd = os.open(".", os.O_WRONLY | _O_TMPFILE | os.O_CLOEXEC, 0o666, dir_fd=directory)
    inode = 0
    try:
        try:
            _write_whole(fd, data)
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
            inode = os.fstat(fd).st_ino
        finally:
            os.close(fd)
    except BaseException:
        if inode and inode_of(directory, name) == inode:  # linked, and only the closing told of the disk
            _discard(directory, name)
        raise
    return inode


def replace_file(directory: int, name: str, data: bytes) -> int:
    """Replace a file whole: written under a private name, then renamed; its inode.

    Raises:
        OSError: it cannot be written or replaced; what was there stands.
    """
    private, inode = write_private(directory, data)
    try:
        os.rename(private, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        _discard(directory, private)
        raise
    return inode


def write_private(directory: int, data: bytes) -> tuple[str, int]:
    """Write a whole file under a private name; name and inode.

    Raises:
        OSError: it cannot be written whole; nothing is left.
    """
    name = _private_name()
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=directory)
    try:
        return name, _write_and_close(fd, data)
    except BaseException:
        _discard(directory, name)
        raise


def _write_and_close(fd: int, data: bytes) -> int:
    """Fill a file; its inode. The closing counts: a network disk may say only then that the bytes did not fit."""
    try:
        _write_whole(fd, data)
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _write_whole(fd: int, data: bytes) -> None:
    if os.write(fd, data) != len(data):  # a disk that fills up in the middle of a line says so only on the next write
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _private_name() -> str:
    return f"{PRIVATE}{os.getpid()}.{next(_serial)}.tmp"


def _discard(directory: int, name: str) -> None:
    """Remove what is of no use. What a sick disk keeps, the next start clears; the failure before it is to be told."""
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=directory)


def unlink(directory: int, name: str) -> bool:
    """Remove a name. False when it was not there."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True
