"""Keeps label and directory in place while a run lives (step 7 of the protocol).

A label deleted by hand is put back. A live stranger in the label, a directory that was moved or deleted, is a
conflict: it is said, and the run that lost its directory is asked to stop with a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import Protocol

from solorun import process
from solorun.dirwatch import DirectoryWatch, watch
from solorun.label import read_label, read_owner
from solorun.lock import DirectoryLock
from solorun.owner import Gone, Label, Owner, Unknown

LOOK_EVERY_S = 1.0


class Told(Protocol):
    """What the keeper tells the run it keeps."""

    def restored(self) -> None:
        """The label had been deleted and stands again."""

    def adopted(self, owner: Owner) -> None:
        """Another process of this run put itself into record and label."""

    def troubled(self, reason: str) -> None:
        """The label cannot be read or put back for the moment."""

    def conflict(self, reason: str) -> None:
        """The directory is lost to this run."""


class Keeper:
    """A thread that looks after one held directory until it is dismissed.

    Args:
        lock: the held directory.
        owner: gives who stands in label and record at this moment.
        told: whom to tell.
    """

    def __init__(self, lock: DirectoryLock, owner: Callable[[], Owner], told: Told) -> None:
        self._lock = lock
        self._owner = owner
        self._told = told
        self._over = False
        self._lost = False
        self._trouble = ""
        self._turn = threading.Lock()
        self._watch: DirectoryWatch | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look.

        Raises:
            OSError: the system has no descriptor or no thread left for it.
        """
        self._watch = watch(self._lock.fd)
        self._thread = threading.Thread(target=self._run, name=process.KEEPER_THREAD, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # RLIMIT_NPROC, as Python puts it
            self._thread = None
            self._watch.close()
            raise OSError(errno.EAGAIN, "no thread is left for the guard") from None

    def dismiss(self) -> None:
        """End the looking; afterwards nothing is put back any more."""
        self._over = True
        # In a forked child the thread does not exist, and its descriptors are the parent's too.
        if self._thread is None or self._watch is None or not self._thread.is_alive():
            return
        self._watch.wake()
        self._thread.join()
        self._watch.close()

    def look(self) -> None:
        """Look once and act."""
        with self._turn:
            if not self._lost and not self._over:
                self._look()

    def relabel(self, owner: Owner) -> bool:
        """Change the label without taking the change for an attack."""
        with self._turn:
            return self._lock.relabel(owner)

    def _run(self) -> None:
        assert self._watch is not None  # noqa: S101 - tells the type checker what start() made sure of
        process.name_this_thread(process.KEEPER_THREAD)  # else its waking would make a hung trainer look busy
        while not self._over:
            try:
                self._look_in_spite_of_the_disk()
                # A failed try to write is a change in the directory too: heeding it would be looking without a pause.
                (self._watch.rest if self._trouble else self._watch.wait)(LOOK_EVERY_S)
            except OSError as error:
                self._lose(self._displacement() or f"the directory cannot be watched any more: {error.strerror}")
                return

    def _look_in_spite_of_the_disk(self) -> None:
        """Look; a disk that is full or faulty loses nobody the directory, since the kernel's lock is not on it."""
        before, self._trouble = self._trouble, ""
        try:
            self.look()
        except OSError as error:
            self._trouble = error.strerror or str(error)
        if self._trouble not in ("", before):
            self._told.troubled(self._trouble)

    def _look(self) -> None:
        self._lock.take_truth()
        if displacement := self._displacement():
            self._lose(displacement)
        elif not self._lock.label_is_ours():
            self._mend()

    def _displacement(self) -> str:
        """What happened to the directory; empty while it is in its place."""
        if self._lock.is_in_place():
            return ""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(self._lock.path)  # a disk that does not answer has not moved: that is trouble, not a conflict
        where = self._lock.current_path()
        return f"the results directory was moved to {where!r}" if where else "the results directory was deleted"

    def _mend(self) -> None:
        found = read_label(self._lock.fd)
        record = read_owner(self._lock.fd) or self._owner()  # removed by hand it tells nothing against us
        if isinstance(found, Label) and self._is_of_this_run(found, record):
            self._lock.take_label_for_ours(record.process.pid)
            self._told.adopted(record)
            return
        if found is None:
            if os.fstat(self._lock.fd).st_nlink and self._lock.restore_label(self._owner()):
                self._told.restored()
            return
        if isinstance(found, Unknown) and found.passing:
            self._trouble = found.reason
        elif not isinstance(found, Label):
            self._lose(found.reason)
        elif found.pid is None or isinstance(process.probe(found.pid), Gone):
            # Overwritten by somebody who is gone, or with garbage: take it back.
            if self._lock.reclaim_label(found, self._owner()):
                self._told.restored()
        elif not process.carries(found.pid, self._owner().run_id):
            # Else two trainers of this run hand over: the record is written already, the label in a moment.
            self._lose(f"PID {found.pid}, an old-style trainer, wrote itself into training.lock")

    def _is_of_this_run(self, found: Label, record: Owner) -> bool:
        same = record.run_id == self._owner().run_id and found.pid == record.process.pid
        return same and process.is_alive(record.process)

    def _lose(self, reason: str) -> None:
        self._lost = True
        self._told.conflict(reason)
