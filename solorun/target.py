"""Whom a stop is about: the run of a directory, who answers for it, and its processes as they come to light."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from solorun import process
from solorun.frozen import dataclass
from solorun.grouping import solorun_verb
from solorun.label import is_copy, look_at, read_owner
from solorun.members import members
from solorun.owner import Alive, Foreign, Held, Owner, ProcessId, Unknown
from solorun.record import happened, last_run, read_events
from solorun.refusal import refusal
from solorun.rundir import OWNER
from solorun.truth import guard_identity, identity

_STARTING_S = 3.0
_LOOK_EVERY_S = 0.5
_ASKED_LATELY_S = 60.0
_WRITING_S = 3.0


@dataclass(frozen=True, slots=True)
class Target:
    """The run to stop.

    Args:
        run_id: empty for an old-style trainer.
        owner: who holds the directory; None when its run is over, or has not yet said who it is.
        others: processes that were found by the run's id or by its lock.
        are_forks: they are forked workers of a trainer that is gone.
    """

    run_id: str
    owner: Owner | None
    others: tuple[ProcessId, ...]
    are_forks: bool = False

    @property
    def request(self) -> int:
        """What to ask with: SIGTERM where it is known to be graceful and never to mean "at once", else SIGINT.

        A trainer of ours may be saving because of an earlier Ctrl-C; another one would make it leave. Old-style
        trainers and most commands know only SIGINT as a graceful end. A forked worker has its trainer's handler for
        SIGINT, which only notes the wish for a loop that the worker does not run.
        """
        if self.are_forks:
            return signal.SIGTERM
        ours = self.owner is not None and self.owner.adopted and self.owner.run_id
        return signal.SIGTERM if ours else signal.SIGINT

    def ask(self) -> None:
        """Send a polite signal to whom answers it for the whole run.

        Raises:
            PermissionError: it belongs to another user; nothing was sent.
        """
        owner, number = self.owner, self.request
        if owner is not None:
            if owner.adopted and process.send(owner.process, number):
                return
            if owner.supervisor is not None and process.send(owner.supervisor, number):
                return
            if process.send_group(owner.process, number) or process.send(owner.process, number):
                return
        for one in self.others:
            process.send(one, number)


def find(directory: Path, sleep: Callable[[float], None] = time.sleep) -> Target | None:
    """The run of a directory; None when nothing of one lives. One that is only starting gets a moment to say who it is.

    Raises:
        Refused: its owner is of another host or PID namespace, or cannot be told.
        OSError: the directory cannot be read.
    """
    deadline = time.monotonic() + _STARTING_S
    while True:
        found, starting = _look(directory)
        if not starting or time.monotonic() > deadline:
            return found
        sleep(0.05)


def _look(directory: Path) -> tuple[Target | None, bool]:
    """The run, and whether it has the lock but has not yet written down who it is."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        verdict = look_at(fd)
        record, last = read_owner(fd), last_run(fd)
        record = None if record is None or is_copy(fd, record) else record
        if isinstance(verdict, Foreign | Unknown):
            raise refusal(directory, verdict, time.time())
        if isinstance(verdict, Held):
            # Beside the label of an old-style trainer there may lie the record of a run that is long dead.
            owner = record if record and process.is_alive(record.process) else _unrecorded(directory, verdict)
            return Target(owner.run_id if owner else "", owner, ()), owner is None
        run_id = record.run_id if record else last.run_id if last else ""
        if run_id and (survivors := process.carriers(run_id)):
            return Target(run_id, None, tuple(survivors)), False
        sharers = _sharers(fd)
    finally:
        os.close(fd)
    if not sharers:
        return None, False
    # Forked workers of a dead trainer share its lock; who took the lock itself is about to start a run, or to let go.
    starting = any(one.pid == taker for one, taker in sharers)
    found = tuple(one for one, _ in sharers)
    return Target("" if starting else run_id, None, found, are_forks=not starting), starting


def _sharers(directory: int) -> list[tuple[ProcessId, int]]:
    """Processes that have the directory's lock, and who took it."""
    found: list[tuple[ProcessId, int]] = []
    for place in (identity(directory), guard_identity(directory)):
        if place is not None:
            found += process.flock_sharers(*place)
    # `solorun recover` holds the directory too, for as long as it tidies up: that is somebody's command, no run.
    return [(one, taker) for one, taker in found if solorun_verb(process.argv(taker)) in ("", "start")]


def _unrecorded(directory: Path, held: Held) -> Owner | None:
    """An old-style trainer, which has a label and nothing else."""
    found = process.identify(held.pid) if held.pid else None
    if found is None:
        return None
    user = process.user_of(found.pid)
    return Owner("", found, None, True, user, process.argv(found.pid), "", 0.0, str(directory), 0)


def _stands(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def was_asked(directory: int, run_id: str) -> bool:
    """Whether the run as it is now was asked a moment ago.

    Survivors that it left, and a trainer that came later, have heard nothing yet; and what did not end a command
    within the usual grace may be asked again.
    """
    asked = False
    for event in read_events(directory):
        if run_id and event.get("run_id") == run_id:
            if event["event"] == "stop requested":
                asked = abs(time.time() - happened(event)) < _ASKED_LATELY_S  # a clock may have been set back
            elif event["event"] in ("survivors", "adopted"):
                asked = False
    return asked


class Pursuit:
    """The processes of a run that is being stopped. What was once seen to be of it stays so when its parent dies.

    Args:
        directory: the results directory.
        target: the run.
        clock: monotonic seconds.
    """

    def __init__(self, directory: Path, target: Target, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._target = target
        self._clock = clock
        asked = (target.owner.process,) if target.owner else target.others
        self._known: dict[ProcessId, None] = dict.fromkeys(asked)
        self._answering = set(asked)
        self._looked = float("-inf")
        self._over_at = float("inf")

    def living(self) -> list[ProcessId]:
        """Live processes of the run, the supervisor left out: it ends by itself and writes down how."""
        alive = [one for one in self._known if process.is_alive(one)]
        if not alive or self._clock() - self._looked > _LOOK_EVERY_S:
            seen = self._look_twice()
            alive = [one for one in self._known if process.is_alive(one)]
            if not (alive or seen):
                return list(self._known)
        return alive

    def _look_twice(self) -> bool:
        """Look, and again where nobody was seen; False when the system let nobody look, which proves nobody dead."""
        try:
            self._look()
            # Twice before it is called dead: a process may start another one and end while the table is read.
            if not any(process.is_alive(one) for one in self._known):
                self._look()
        except OSError:
            return False
        return True

    def _look(self) -> None:
        self._looked = self._clock()
        parents = process.parents()
        found = [*self._target.others, *members(self._target.owner, self._target.run_id, parents=parents)]
        for one in list(self._known):
            found += process.descendants(one, parents)
        if not any(process.is_alive(one) for one in found):
            found += self._sharers()
        own = (os.getpid(), self._supervisor_pid())
        self._known.update(dict.fromkeys(one for one in found if one.pid not in own))

    def _supervisor_pid(self) -> int:
        supervisor = self._target.owner.supervisor if self._target.owner else None
        return supervisor.pid if supervisor else 0

    def _sharers(self) -> list[ProcessId]:
        """Forked workers of a trainer that is gone: neither an id nor a parent tells of them, but its lock does."""
        if self._target.owner is None:
            return []
        takers = (self._target.owner.process.pid, self._supervisor_pid(), 0)  # 0: gone, as a container tells it
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):  # moved or deleted: there is no lock to find them by
            return []
        try:
            return [one for one, taker in _sharers(fd) if taker in takers]
        finally:
            os.close(fd)

    def rest(self) -> list[ProcessId]:
        """What still has to end: live processes of the run, and after them a supervisor that has not let go yet."""
        living = self.living()
        if living:
            return living
        supervisor = self._target.owner.supervisor if self._target.owner else None
        return [supervisor] if supervisor is not None and self._holds_on(supervisor) else []

    def _holds_on(self, supervisor: ProcessId) -> bool:
        """Whether the supervisor has not let this run's directory go; it may live on a moment, to send notices."""
        try:
            return process.is_alive(supervisor) and self._is_of_this_run()  # and not the next run's, which had waited
        except OSError:  # nobody could look: what is not seen to be let go is held
            return True

    def _record(self) -> Owner | None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return read_owner(fd)
        finally:
            os.close(fd)

    def _is_of_this_run(self) -> bool:
        """Whether the record tells of this run, or stands there and cannot be read."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            record = read_owner(fd)
            return _stands(fd, OWNER) if record is None else record.run_id == self._target.run_id
        finally:
            os.close(fd)

    def leader_is_gone(self) -> bool:
        """Whether the process that was asked for the whole run has ended."""
        return self._target.owner is not None and not process.is_alive(self._target.owner.process)

    def unasked(self) -> list[ProcessId]:
        """Live processes that have heard no request, once the one that answered for the whole run is gone."""
        owner = self._target.owner
        group = owner.process.pid if owner is not None and not owner.adopted else 0
        # A command that has adopted nothing was asked with its whole group, and a second SIGINT means "at once".
        return [one for one in self.living() if not group or process.system.group(one.pid) != group]

    def ask_leftovers(self, left: list[ProcessId]) -> None:
        """Ask them: a trainer of ours that came after the first for all of them, else each.

        Raises:
            PermissionError: a process belongs to another user.
        """
        if self.ask_newcomer() is not None:
            return
        forks = self._sharers()
        for one in left:
            process.send(one, signal.SIGTERM if one in forks else signal.SIGINT)

    def ask_newcomer(self) -> ProcessId | None:
        """Ask a trainer of ours that has come to answer for the run, once; None where there is none.

        Who asked the others may have come before its process, or in the midst of its start. SIGTERM never means "at
        once" to it.

        Raises:
            PermissionError: it belongs to another user.
        """
        try:
            record = self._record()
        except OSError:  # nobody could look: the next poll does
            return None
        if record is None or not record.adopted or record.run_id != self._target.run_id:
            return None
        if record.process in self._answering or not process.is_alive(record.process):
            return None
        self._answering.add(record.process)
        process.send(record.process, signal.SIGTERM)
        return record.process

    def wake(self) -> None:
        """Let go on what is suspended: a stopped process, trainer or worker or supervisor, hears nothing."""
        supervisor = self._target.owner.supervisor if self._target.owner else None
        for one in (*self._known, *((supervisor,) if supervisor else ())):
            seen = process.probe(one.pid)
            if isinstance(seen, Alive) and seen.state == "T":
                with contextlib.suppress(PermissionError):
                    process.send(one, signal.SIGCONT)

    def signal(self, number: int) -> None:
        """Send a signal to everything that still has to end.

        Raises:
            PermissionError: a process belongs to another user.
        """
        living = self.living()
        for one in living or self._overdue():
            process.send(one, number)

    def _overdue(self) -> list[ProcessId]:
        """A supervisor that holds on although its run is over: it gets a moment to write down and tell how it ended."""
        left = self.rest()
        if not left:
            return []
        self._over_at = min(self._over_at, self._clock())
        return left if self._clock() - self._over_at > _WRITING_S else []
