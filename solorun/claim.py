"""A claimed results directory: what a supervisor and an unsupervised trainer both do around a run.

Lock, refusal in plain words, run record, journal, the keeper, and at the very end the release.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from solorun import lock, process
from solorun.closing import End, close_dead, register, write_end
from solorun.errors import DirectoryProblem, directory_problem
from solorun.frozen import replace
from solorun.keeper import Keeper
from solorun.label import kept_by, look, look_at, read_owner
from solorun.logs import LogFile
from solorun.owner import Owner, ProcessId, Stale, told
from solorun.record import RunRecord, append_metrics, journal, last_run_id, new_run_id, read_record, write_record
from solorun.refusal import refusal
from solorun.rundir import EVENTS, METRICS, PRIVATE
from solorun.wording import ask_to_clear, not_yours

SURVIVORS_S = 2.0
"""How long a start waits for what is left of the run before it."""


class Claim:
    """The right to train in one directory, with everything that is written down about the run.

    Made by `claim`; `publish` names the training process; `end` writes down how it ended and lets go.

    Args:
        held: the locked directory.
        run_id: of the new run.
        previous: the record that the last run left.
        clock: seconds since the epoch.
    """

    def __init__(
        self, held: lock.DirectoryLock, run_id: str, previous: RunRecord | None, clock: Callable[[], float]
    ) -> None:
        self.lock = held
        self.run_id = run_id
        self.previous = previous
        self.clock = clock
        self.owner: Owner | None = None
        self.log = LogFile(held.fd)
        self.record: RunRecord | None = None
        self._lost: dict[str, int] = {}
        self._keeper: Keeper | None = None
        self._on_conflict: Callable[[str], None] = lambda _reason: None

    def publish(
        self,
        training: ProcessId,
        argv: tuple[str, ...],
        *,
        supervisor: ProcessId | None,
        adopted: bool,
        launcher: ProcessId | None = None,
        settle: bool = True,
    ) -> None:
        """Put up record and label for the training process, and write the run down.

        Raises:
            Held: an old-style trainer was quicker.
            DirectoryProblem: the directory cannot be written.
        """
        now = self.clock()
        owner = Owner(
            run_id=self.run_id,
            process=training,
            supervisor=supervisor,
            adopted=adopted,
            user=process.user_name(os.getuid()),
            argv=told(argv),
            cwd=_cwd(),
            since=now,
            directory=self.lock.path,
            directory_inode=self.lock.inode,
            launcher=launcher,
        )
        try:
            verdict = self.lock.publish(owner) or (self.lock.settle() if settle else None)
            if verdict is not None:
                raise refusal(Path(self.lock.path), verdict, now)
            self.owner = owner
            self._write_down(owner, now)
        except OSError as error:
            with contextlib.suppress(OSError):
                self.lock.withdraw()
            raise directory_problem(error, "write the lock of", self.lock.path) from None

    def _write_down(self, owner: Owner, now: float) -> None:
        # A journal that cannot be written must not keep a run from starting; run.json below must be.
        with contextlib.suppress(OSError):
            close_dead(self.lock.fd, Path(self.lock.path), self.previous, now, process.here())
        training = owner.process
        self.record = RunRecord(
            self.run_id, self.previous_run_id(), owner.argv, owner.user, training.here.host, training.pid, now,
            boot=training.here.boot, log_at=os.fstat(self.log.fd).st_size,
            directory=self.lock.path, directory_inode=self.lock.inode,
        )  # fmt: skip
        write_record(self.lock.fd, self.record)
        if self.lock.took_over is not None:
            self.event("taken over", proof=self.lock.took_over.proof)
        started = {"pid": training.pid, "user": owner.user, "argv": list(owner.argv), "host": training.here.host}
        self.event("started", **started, boot=training.here.boot, parent=self.record.parent_run_id)
        register(self.record, Path(self.lock.path))

    def previous_run_id(self) -> str | None:
        """The run before this one: as the supervisor wrote it down for an adopted claim."""
        if self.previous is not None:
            return self.previous.run_id
        record = read_record(self.lock.fd)
        return record.parent_run_id if record is not None and record.run_id == self.run_id else None

    def keep(self, on_conflict: Callable[[str], None]) -> None:
        """Watch over label and directory from now on.

        Args:
            on_conflict: called once, from the keeper's thread, when the directory is lost to this run.
        """
        self._on_conflict = on_conflict
        self._keeper = Keeper(self.lock, self.current_owner, self)
        self._keeper.start()

    def current_owner(self) -> Owner:
        """Who stands in label and record."""
        if self.owner is None:
            raise DirectoryProblem(f"nothing was published in {self.lock.path!r}")
        return self.owner

    def restored(self) -> None:
        """The keeper put a deleted label back."""
        self.event("restored label")
        self.log.write("solorun: training.lock was deleted or overwritten by hand; it has been put back")

    def adopted(self, owner: Owner) -> None:
        """The keeper saw that a trainer of this run took the label over."""
        if self.owner is None or (self.owner.process, self.owner.adopted) != (owner.process, owner.adopted):
            self.event("adopted", pid=owner.process.pid)
        self.owner = owner

    def conflict(self, reason: str) -> None:
        """The keeper found that the directory is lost to this run."""
        self.event("conflict", reason=reason)
        self.log.write(f"solorun: CONFLICT: {reason}; this run is asked to stop with a checkpoint")
        self._on_conflict(reason)

    def relabel(self, training: ProcessId) -> bool:
        """Name another process of this run in label and record; it has adopted nothing."""
        owner = replace(self.current_owner(), process=training, adopted=False)
        done = self._keeper.relabel(owner) if self._keeper else self.lock.relabel(owner)
        if done:
            self.owner = owner
        return done

    def hand_back(self, before: Owner | None) -> None:
        """Put the process that was in the label before an adoption back, if it lives (a script of several trainers)."""
        if self._keeper is not None:
            self._keeper.dismiss()
        if before is not None and process.is_alive(before.process):
            with contextlib.suppress(OSError):  # a full disk: the supervisor relabels when it sees us gone
                self.lock.relabel(before)

    def event(self, name: str, **facts: Any) -> None:
        """Write an event into the journal. A journal that cannot be written must not end the run."""
        self._append(EVENTS, lambda: journal(self.lock.fd, self.run_id, name, self.clock(), **facts))

    def metrics(self, values: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`. A full disk costs the line, never the run."""
        self._append(METRICS, lambda: append_metrics(self.lock.fd, self.run_id, values))

    def _append(self, name: str, write: Callable[[], None]) -> None:
        """Write a line; what cannot be written is counted, and told in the log when the file takes lines again."""
        try:
            write()
        except OSError:
            self._lost[name] = self._lost.get(name, 0) + 1
        else:
            self._tell_lost(name)

    def _tell_lost(self, name: str) -> None:
        if lost := self._lost.pop(name, 0):
            lines = "1 line" if lost == 1 else f"{lost} lines"
            self.log.write(f"solorun: {lines} of {name} lost: the file could not be written")

    def end(self, end: End, announce: Callable[[str], None] = lambda _line: None) -> None:
        """Write down how the run ended, take the label down, say so, and let go, in this order."""
        if self._keeper is not None:
            self._keeper.dismiss()
        with contextlib.suppress(OSError):
            # Another process of this run may have put itself, or us, into label and record a moment ago.
            record = read_owner(self.lock.fd)
            if record is not None and record.run_id == self.run_id:
                self.lock.take_label_for_ours(record.process.pid)
        with contextlib.suppress(OSError):  # a full disk must not keep the lock
            self._write_end(end)

        def farewell() -> None:
            if self.lock.left_behind:
                self._complain(f"{self.lock.left_behind}; once this process has ended, the next start clears it")
            for name in tuple(self._lost):
                self._tell_lost(name)
            self.log.write("Released lock")
            announce("Released lock")
            self.log.close()

        self.lock.release(farewell)

    def abandon(self, *, withdraw: bool = True) -> None:
        """Let go of a directory in which nothing was begun.

        Args:
            withdraw: whether to take label and record down; what a sick disk keeps of them, the next start clears.
        """
        if self._keeper is not None:
            self._keeper.dismiss()  # else it would put back what is taken down here
        self.log.close()  # first: with no file left to open, the label could not be told for ours
        if withdraw:
            with contextlib.suppress(OSError):
                self.lock.withdraw()
        self.lock.close()

    def _complain(self, line: str) -> None:
        """To the log and to whoever sees standard errors: where the log cannot be written, nobody would know."""
        self.log.write(f"solorun: {line}")
        if not self.log.is_stdout:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"solorun: {line}\n")
                sys.stderr.flush()

    def troubled(self, reason: str) -> None:
        """The keeper cannot do its work for the moment."""
        self.log.write(
            f"solorun: cannot look after training.lock: {reason}; the directory stays locked, and it is tried again"
        )

    def _write_end(self, end: End) -> None:
        record = read_record(self.lock.fd) or self.record
        if record is not None and record.run_id == self.run_id:
            self.record = write_end(self.lock.fd, Path(self.lock.path), record, end, self.clock())


def claim(directory: str | os.PathLike[str], clock: Callable[[], float], settle_s: float = lock.SETTLE_S) -> Claim:
    """Lock a results directory, made if it is missing, and clear what is proven stale.

    Raises:
        Held: another run holds it; tells who, since when, at which step.
        Refused: its owner is of another host or PID namespace, or cannot be told.
        DirectoryProblem: it cannot be made, read or written.
    """
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = _enter_after_survivors(path, settle_s)
    except FileExistsError:
        raise DirectoryProblem(f"{str(path)!r} is not a directory", "name a results directory, not a file") from None
    except OSError as error:
        raise _left_by_another(path) or directory_problem(error, "use", path) from None
    if not isinstance(held, lock.DirectoryLock):
        raise refusal(path, held, clock())
    try:
        _sweep(held.fd)
        return Claim(held, new_run_id(clock()), read_record(held.fd), clock)
    except OSError as error:
        held.close()
        raise directory_problem(error, "write in", path) from None


def _left_by_another(path: Path) -> DirectoryProblem | None:
    """What to say where the lock of a run that is over is another user's to remove; None where it is not."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        left, user = look_at(fd), kept_by(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    if not (user and isinstance(left, Stale)):
        return None
    return DirectoryProblem(f"cannot use {str(path)!r}: {not_yours(left.proof, user)}", ask_to_clear(user))


def _enter_after_survivors(path: Path, settle_s: float) -> lock.DirectoryLock | lock.Refusal:
    """Enter; data workers of a killed trainer notice its death within a moment, and are given that moment."""
    deadline = time.monotonic() + SURVIVORS_S
    while True:
        found = lock.enter(path, last_run=last_run_id, settle_s=settle_s)
        if not isinstance(found, lock.Survivors) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def clear_stale(directory: Path, now: float) -> Stale | None:
    """Clear a lock that is proven stale, by the same steps as a start; what was cleared, None when nothing was.

    Raises:
        OSError: the directory cannot be read or written.
    """
    if not isinstance(look(directory), Stale):
        return None
    entered = lock.enter(directory, last_run=last_run_id, settle_s=0)
    if not isinstance(entered, lock.DirectoryLock):
        return None
    found = entered.took_over
    if found is not None:
        with contextlib.suppress(OSError):  # a journal that cannot be written must not keep a stale lock
            last = close_dead(entered.fd, directory.absolute(), read_record(entered.fd), now, process.here())
            if last is not None:
                write_record(entered.fd, last)
            journal(entered.fd, "", "cleared stale lock", now, proof=found.proof)
    entered.release()
    return found


def _sweep(directory: int) -> None:
    """Remove private files that a killed process left; ours is the only run, so nobody is writing them."""
    for name in os.listdir(directory):
        if name.startswith(PRIVATE) and name.endswith(".tmp"):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # deleted under us
        return ""
