"""The lock of a results directory. `docs/lock.md` tells the protocol; step numbers here are its numbers.

Truth is an exclusive `flock` on the directory's own descriptor: no file to delete, freed by the kernel when the
last holder dies. `training.lock` is a label for people and old tools, `training.owner.json` the identity beside it.
Every name is opened relative to the locked descriptor, so a directory that is moved meanwhile stays the right one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from solorun import process
from solorun.frozen import dataclass
from solorun.label import (
    clear,
    create_exclusively,
    inode_of,
    is_copy,
    judge_directory,
    link_file,
    read_label,
    read_owner,
    read_plain,
    replace_file,
    take_away,
    unlink,
)
from solorun.owner import Foreign, Free, Held, Label, Owner, ProcessId, Stale, Unknown, Verdict, encode_owner
from solorun.rundir import LABEL, OWNER
from solorun.truth import flock, guard_identity, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SETTLE_S = 0.1
SETTLE_AFTER_TAKEOVER_S = 0.25

_CANNOT_LINK = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class Busy:
    """The kernel says that another process holds the directory."""


@dataclass(frozen=True, slots=True)
class Survivors:
    """The run is over, but processes of it live and may still write."""

    run_id: str
    processes: tuple[ProcessId, ...]


Refusal = Busy | Survivors | Held | Foreign | Unknown


class DirectoryLock:
    """The exclusive right to one results directory, from `enter` to `release`.

    Args:
        path: absolute path when it was locked.
        fd: descriptor of the directory.
        truth: descriptor that carries the flock (the same, or the guard file's).
        took_over: what was cleared away to get in, None when nothing was.
        settle_s: how long an old-style trainer may still be between its check and its write.
    """

    def __init__(
        self, path: str, fd: int, truth: int, took_over: Stale | None = None, settle_s: float = SETTLE_S
    ) -> None:
        self.path = path
        self.fd = fd
        self.truth = truth
        self.took_over = took_over
        self.settle_s = settle_s
        self.identity = identity(fd)
        self.borrowed = False
        """The truth is another process's of this run, and becomes ours when that one dies (see `join`)."""
        self.left_behind = ""
        """Why label or record could not be taken down in the end; the next start clears them."""
        self._creator = os.getpid()
        self._text = b""
        self._label_inode = 0
        self._record_inode = 0

    @property
    def inode(self) -> int:
        """Inode of the locked directory."""
        return self.identity[1]

    def publish(self, owner: Owner) -> Verdict | None:
        """Put up record and label (step 5).

        Returns:
            None when they stand; else the verdict on what stands in the way, with nothing of ours left.

        Raises:
            OSError: the directory cannot be written; nothing of ours is left.
        """
        try:
            self._link_record(owner)
            for _ in range(_ATTEMPTS):
                if self._link_label(owner.process.pid):
                    return None
                verdict = judge_directory(self.fd, None)
                if not isinstance(verdict, Stale) or not clear(self.fd, verdict):
                    break
        except OSError:
            with contextlib.suppress(OSError):  # the first failure is the one to tell
                self.withdraw()
            raise
        self.withdraw()
        return (
            verdict
            if not isinstance(verdict, Free | Stale)
            else Unknown("the label changes faster than it can be read")
        )

    def _link_record(self, owner: Owner) -> None:
        """The first record of a run: nothing is there to be replaced."""
        try:
            inode = link_file(self.fd, OWNER, encode_owner(owner))
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            inode = None
        if inode is None:
            self.write_record(owner)
        else:
            self._record_inode = inode

    def write_record(self, owner: Owner) -> None:
        """Replace the record whole."""
        self._record_inode = replace_file(self.fd, OWNER, encode_owner(owner))

    def settle(self, sleep: Callable[[float], None] = time.sleep) -> Verdict | None:
        """Wait until no old-style trainer can still be about to overwrite the label (step 6).

        Returns:
            None when the label is still ours; else who has it now, with nothing of ours left.
        """
        if not self.settle_s:
            return None
        sleep(self.settle_s)
        found = read_label(self.fd)
        if isinstance(found, Label) and (found.inode, found.text) == (self._label_inode, self._text):
            return None
        self.withdraw()
        if isinstance(found, Unknown):  # it may still be ours; nobody can say
            return found
        pid = found.pid if isinstance(found, Label) else None
        return Held(pid, None, "it took the label while we were starting (an old-style trainer)")

    def relabel(self, owner: Owner) -> bool:
        """Name another process of the same run in record and label. False when the label is no longer ours.

        Renamed over our own label, so that there is no moment without one, in which an old-style trainer could enter.
        """
        if not self.label_is_ours():
            return False
        self.write_record(owner)
        text = b"%d\n" % owner.process.pid
        self._label_inode, self._text = replace_file(self.fd, LABEL, text), text
        return True

    def label_is_ours(self) -> bool:
        """Whether the very file that we put up stands there, with the text that we wrote."""
        return read_plain(self.fd, LABEL) == (self._label_inode, self._text)

    def restore_label(self, owner: Owner) -> bool:
        """Put a deleted label back (step 7), and the record with it. False when another one stands there."""
        if not self._link_label(owner.process.pid):
            return False
        self.write_record(owner)
        return True

    def reclaim_label(self, found: Label, owner: Owner) -> bool:
        """Replace a label that is garbage or names a dead process. False when it changed meanwhile."""
        return take_away(self.fd, found) and self.restore_label(owner)

    def is_in_place(self) -> bool:
        """Whether the path still leads to the locked directory."""
        try:
            return identity(self.path) == self.identity
        except OSError:
            return False

    def current_path(self) -> str | None:
        """Where the locked directory is now; None when it was deleted."""
        if self.is_in_place():
            return self.path
        return process.path_of_descriptor(self.fd) if os.fstat(self.fd).st_nlink else None

    def take_truth(self) -> None:
        """Take the kernel's lock as soon as it is free, where it was borrowed."""
        if self.borrowed and (truth := flock(self.fd)) is not None:
            self.truth, self.borrowed = truth, False

    def release(self, farewell: Callable[[], None] = lambda: None) -> None:
        """Take label and record down, say farewell while still alone, then let go (step 8).

        Does nothing in a forked child: its exit must not free the parent's directory.
        """
        if os.getpid() != self._creator or self.fd < 0:
            return
        try:
            try:
                self.withdraw()
            except OSError as error:  # a disk that went read-only or faulty: the kernel's lock is let go all the same
                self.left_behind = f"{error.filename} in {self.path!r} cannot be removed: {error.strerror}"
            farewell()
        finally:
            self.close()

    def withdraw(self) -> None:
        """Take down what is ours of label and record, and nothing else."""
        if self.fd < 0:
            return
        self._remove_label()
        if self._record_inode and inode_of(self.fd, OWNER) == self._record_inode:
            unlink(self.fd, OWNER)

    def close(self) -> None:
        """Let the kernel's lock go, unless another process of the run still has the descriptor."""
        for fd in {self.truth, self.fd} - {-1}:
            os.close(fd)
        self.truth = self.fd = -1

    def take_label_for_ours(self, pid: int) -> None:
        """Take record and label that our supervisor put up, naming this PID, for our own."""
        found = read_label(self.fd)
        if isinstance(found, Label) and found.pid == pid:
            self._label_inode, self._text = found.inode, found.text
        self._record_inode = inode_of(self.fd, OWNER)

    def _link_label(self, pid: int) -> bool:
        text = b"%d\n" % pid
        try:
            inode = link_file(self.fd, LABEL, text)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            inode = inode_of(self.fd, LABEL) if create_exclusively(self.fd, text) else None
        if inode is None:
            return False
        self._label_inode, self._text = inode, text
        return True

    def _remove_label(self) -> bool:
        if not self._text or not self.label_is_ours():
            return False
        return unlink(self.fd, LABEL)


def enter(
    path: str | os.PathLike[str],
    *,
    last_run: Callable[[int], str | None] = lambda _fd: None,
    carriers: Callable[[str], list[ProcessId]] = process.carriers,
    settle_s: float = SETTLE_S,
) -> DirectoryLock | Refusal:
    """Lock a results directory and clear away what is proven stale (steps 1 to 4).

    Args:
        path: the directory; it must exist.
        last_run: gives the id of the directory's previous run, asked once the directory is ours.
        carriers: finds live processes of a run by its id.
        settle_s: how long `settle` shall wait where old-style trainers may race; 0 where they cannot.

    Raises:
        OSError: the directory is missing, is not one, or may not be read.
    """
    lock = seize(path, settle_s=settle_s)
    if not isinstance(lock, DirectoryLock):
        return lock
    return _clear_the_way(lock, last_run, carriers)


def seize(path: str | os.PathLike[str], *, settle_s: float = SETTLE_S) -> DirectoryLock | Busy | Unknown:
    """Take the kernel's lock alone (step 1): no new run gets in, and what stands there stays as it is.

    Raises:
        OSError: the directory is missing, is not one, or may not be read.
    """
    absolute = os.path.abspath(path)
    for _ in range(_ATTEMPTS):
        fd = os.open(absolute, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            truth = flock(fd)
        except BaseException:
            os.close(fd)
            raise
        if truth is None:
            os.close(fd)
            return Busy()
        lock = DirectoryLock(absolute, fd, truth, settle_s=settle_s)
        if lock.is_in_place():  # a directory that was replaced meanwhile is not the one we locked
            return lock
        lock.close()
    return Unknown("the directory is replaced again and again")


def adopt(path: str | os.PathLike[str], truth: int) -> DirectoryLock | None:
    """Take over a lock that was inherited by descriptor. None when it is not this directory's lock.

    Args:
        path: the directory that the caller wants to hold.
        truth: the inherited descriptor.
    """
    absolute = os.path.abspath(path)
    try:
        fd = os.open(absolute, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        inherited = identity(truth)
        ours = inherited in (identity(fd), guard_identity(fd))
        # On the same open description this succeeds exactly when the lock is already ours.
        if ours and flock(truth) is not None:
            os.set_inheritable(truth, False)
            return DirectoryLock(absolute, fd, truth)
    except OSError:  # the descriptor was closed on the way here
        pass
    os.close(fd)
    return None


def join(path: str | os.PathLike[str], run_id: str) -> DirectoryLock | None:
    """Share a directory that this run holds, where the descriptor was lost on the way (`Popen` closes it).

    The supervisor's lock keeps others out. When the supervisor dies, `take_truth` makes the lock ours; until then
    record and label, which name a live process, refuse every start.

    Raises:
        OSError: whether the run holds it cannot be told for the moment.
    """
    absolute = os.path.abspath(path)
    try:
        fd = os.open(absolute, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        record = read_owner(fd)
        if record is not None and record.run_id == run_id:
            joined = DirectoryLock(absolute, fd, fd)
            joined.borrowed = True
            joined.take_truth()
            return joined
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _clear_the_way(
    lock: DirectoryLock, last_run: Callable[[int], str | None], carriers: Callable[[str], list[ProcessId]]
) -> DirectoryLock | Refusal:
    try:
        refusal = make_way(lock, last_run, carriers)
    except BaseException:
        lock.close()
        raise
    if refusal is not None:
        lock.close()
        return refusal
    return lock


def make_way(
    lock: DirectoryLock,
    last_run: Callable[[int], str | None],
    carriers: Callable[[str], list[ProcessId]] = process.carriers,
) -> Refusal | None:
    """Clear what is proven stale in a directory that is locked (steps 2 to 4); what stands in the way, else None."""
    record = read_owner(lock.fd)
    ours = record is not None
    # What is left of a run that this directory was copied from lives elsewhere.
    recorded = record.run_id if record and not is_copy(lock.fd, record) else None
    for run_id in dict.fromkeys((recorded, last_run(lock.fd))):
        if run_id and (alive := carriers(run_id)):
            return Survivors(run_id, tuple(alive))
    for _ in range(_ATTEMPTS):
        verdict = judge_directory(lock.fd, record)
        if isinstance(verdict, Free):
            return None
        if not isinstance(verdict, Stale):
            return verdict
        cleared = clear(lock.fd, verdict)
        record = read_owner(lock.fd)
        if cleared:
            lock.took_over = verdict
            # A record of our own kind means that no old-style trainer was here last.
            lock.settle_s = 0.0 if ours else lock.settle_s and SETTLE_AFTER_TAKEOVER_S
    return Unknown("the label changes faster than it can be read")
