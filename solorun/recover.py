"""Recover a results directory: look, name the scenario, plan, carry the plan out, and prove that a start gets in."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from solorun import lock, process, torn
from solorun.claimants import find
from solorun.ending import Patience, end_all
from solorun.errors import Refused, SolorunError, directory_problem
from solorun.frozen import dataclass
from solorun.grouping import Claimant
from solorun.label import clear, look_at, read_label, read_owner
from solorun.owner import Label, Owner, ProcessId, Stale
from solorun.record import happened, journal, last_run_id, read_events
from solorun.refusal import refusal
from solorun.remedy import Policy, mixed
from solorun.rundir import checkpoint_files
from solorun.runstate import Elsewhere, Idle, Left, Running
from solorun.scenario import (
    AbandonedContainer,
    AbandonedHost,
    Facts,
    Fighting,
    HungRun,
    OrphanedWorkers,
    Scenario,
    Unguarded,
)
from solorun.settings import Settings
from solorun.status import examine
from solorun.stop import StillRunning, StopPolicy, stop
from solorun.torn import Damaged

_ENTER_S = 5.0
_POLL_S = 0.02
_LOOKS = 5
_PUBLISHING_S = 0.1
_SAME_REQUEST_S = 60.0
"""Asked again within this time, a trainer may take it for "at once" and leave without its checkpoint."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """The directory is free: a start got in, or one that had waited is in already.

    Args:
        aside: where files were put; None when none had to be.
        files: which.
        taken_by: PID of the run that came in meanwhile; None when the proof was our own.
        checkpoint: name of the newest checkpoint that is left; empty when there is none.
    """

    aside: Path | None
    files: tuple[Damaged, ...]
    taken_by: int | None
    checkpoint: str


@dataclass(frozen=True, slots=True)
class StillAlive:
    """Processes live on, and nothing was cleared."""

    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Blocked:
    """Something else stands in the way."""

    reason: SolorunError


Outcome = Recovered | StillAlive | Blocked


def look(directory: Path, now: float, settings: Settings) -> Facts:
    """Everything that a diagnosis needs, changing nothing.

    Args:
        directory: its path.
        now: seconds since the epoch.
        settings: thresholds.

    Raises:
        DirectoryProblem: it is missing, not a directory, or cannot be read.
    """
    try:
        for _ in range(_LOOKS):
            facts = _look_once(directory, now, settings)
            if not (facts.is_locked and isinstance(facts.state, Idle | Left)):
                break
            time.sleep(_PUBLISHING_S)  # a start that has the lock, and has not put its label up yet, is no stray
    except OSError as error:
        raise directory_problem(error, "look into", directory) from None
    return facts


def _look_once(directory: Path, now: float, settings: Settings) -> Facts:
    state, _ = examine(directory, now, settings)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        verdict = look_at(fd)
    finally:
        os.close(fd)
    claimants = find(directory, now)
    # Only where label and record leave it open: for that instant, a start would be refused.
    is_locked = isinstance(state, Idle | Left | Elsewhere) and _is_locked(directory)
    members = (member for one in claimants for member in one.members)
    untouchable = {process.user_of(member.pid) for member in members if not process.may_signal(member)}
    place = os.path.realpath(directory)
    return Facts(
        state=state,
        verdict=verdict,
        claimants=claimants,
        files=() if isinstance(state, Running) and len(claimants) < 2 else torn.damaged(directory),
        is_locked=is_locked,
        disk=process.foreign_disk(place),
        untouchable=tuple(sorted(untouchable)),
        here=process.here(),
    )


def _is_locked(directory: Path) -> bool:
    seized = lock.seize(directory)
    if isinstance(seized, lock.DirectoryLock):
        seized.close()
        return False
    return True


def spoiled(directory: Path, found: Scenario, files: tuple[Damaged, ...]) -> tuple[Damaged, ...]:
    """The files to put aside: the torn ones, and in a fight those that several wrote to."""
    if not isinstance(found, Fighting):
        return files
    written: dict[str, float] = {}
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                written[entry.name] = entry.stat(follow_symlinks=False).st_mtime
    more = mixed(found.claimants, written)
    known = {file.name for file in more}
    return (*more, *(file for file in files if file.name not in known))


def apply(
    directory: Path,
    found: Scenario,
    policy: Policy,
    clock: Callable[[], float],
    tell: Callable[[str], None] = lambda _line: None,
) -> Outcome:
    """Carry the plan of a scenario out.

    Args:
        directory: the results directory.
        found: what `scenario.diagnose` named a moment ago.
        policy: how far to go.
        clock: seconds since the epoch.
        tell: told in one line what is going on.

    Raises:
        Refused: a process of it belongs to another user.
        DirectoryProblem: the directory cannot be read or written.
    """
    try:
        return _Recovery(directory, found, policy, clock, tell).carry_out()
    except PermissionError as error:
        if error.filename is None:  # a signal, not a file
            raise Refused(
                "a process of it belongs to another user, and the system does not let you signal it"
            ) from None
        raise directory_problem(error, "recover", directory) from None
    except OSError as error:
        raise directory_problem(error, "recover", directory) from None


class _Recovery:
    """The kernel's lock is taken as early as it can be had, so that no start gets in between two steps."""

    def __init__(
        self,
        directory: Path,
        found: Scenario,
        policy: Policy,
        clock: Callable[[], float],
        tell: Callable[[str], None],
    ) -> None:
        self.directory = directory
        self.found = found
        self.policy = policy
        self.clock = clock
        self.tell = tell
        self.began = clock()
        self.held: lock.DirectoryLock | None = None

    def carry_out(self) -> Outcome:
        self._seize()
        try:
            # Looked at before they end: afterwards nobody knows who wrote what.
            fought_over = spoiled(self.directory, self.found, ())
            living = self._end()
            if living:
                return StillAlive(living)
            return self._when_alone(fought_over)
        finally:
            if self.held is not None:
                self.held.close()

    def _when_alone(self, fought_over: tuple[Damaged, ...]) -> Outcome:
        """Tidy up under the lock; a start that had waited may have come in first, and then nothing is touched."""
        deadline = time.monotonic() + _ENTER_S
        while True:
            self._seize()
            if self.held is not None:
                return self._tidy(self.held, fought_over)
            if newcomer := self._newcomer():
                names = ", ".join(file.name for file in fought_over)
                if names:
                    self.tell(f"a start that had waited was in first, so these stay as they are: {names}")
                return self._recovered(None, (), newcomer.process.pid)
            if time.monotonic() > deadline:
                return Blocked(self._refusal(lock.Busy()))
            time.sleep(_POLL_S)

    def _seize(self) -> None:
        if self.held is None:
            seized = lock.seize(self.directory, settle_s=0.0)
            self.held = seized if isinstance(seized, lock.DirectoryLock) else None

    def _end(self) -> tuple[int, ...]:
        match self.found:
            case HungRun(claimant):
                result = stop(self.directory, StopPolicy(self.policy.hung_s, self.policy.kill), tell=self.tell)
                if isinstance(result, StillRunning):
                    return tuple(member.pid for member in claimant.members if process.is_alive(member))
            case Fighting(claimants):
                self._end_all(claimants, Patience(self.policy.fight_s, kill=self.policy.kill))
            case OrphanedWorkers(claimant):
                self._end_all((claimant,), Patience(self.policy.fight_s, term=True, kill=self.policy.kill))
            case Unguarded(claimant):
                self._end_all((claimant,), Patience(self.policy.fight_s, kill=self.policy.kill))
        # Looked for again, not only at those that were asked: others may have come, or been started by them.
        return tuple(member.pid for one in self._others() for member in one.members)

    def _end_all(self, claimants: tuple[Claimant, ...], patience: Patience) -> None:
        asked = self._asked_lately()
        fresh = tuple(one for one in claimants if not asked & {one.run_id, *(str(whom.pid) for whom, _ in one.ask)})
        for one in claimants:
            if one not in fresh:
                self.tell(f"PID {one.leader.pid} was asked to stop a moment ago; waiting for it")
        end_all(claimants, patience, ask=fresh, tell=self.tell, asked=self._write_down, while_waiting=self._seize)

    def _asked_lately(self) -> set[str]:
        """Run ids, and PIDs of runs without one, that were asked within the usual grace."""
        with self._descriptor() as fd:
            events = [event for event in read_events(fd) if event["event"] == "stop requested"]
        late = [event for event in events if abs(self.began - happened(event)) < _SAME_REQUEST_S]
        return {str(event.get("run_id") or event.get("pid") or "?") for event in late}

    def _write_down(self, one: Claimant, whom: ProcessId, number: int) -> None:
        user = process.user_name(os.getuid())
        with contextlib.suppress(OSError), self._descriptor() as fd:  # a full disk must not end a recovery
            journal(fd, one.run_id, "stop requested", self.clock(), by=user, signal=number, pid=whom.pid)

    @contextlib.contextmanager
    def _descriptor(self) -> Iterator[int]:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def _others(self) -> list[Claimant]:
        """Claimants other than a run of ours that came in by itself, through the lock, since we began."""
        newcomer = self._newcomer()
        process_of_it = newcomer.process if newcomer else None
        return [one for one in find(self.directory, self.clock()) if process_of_it not in one.members]

    def _tidy(self, held: lock.DirectoryLock, fought_over: tuple[Damaged, ...]) -> Outcome:
        cleared = self._clear_abandoned(held)
        standing = lock.make_way(held, last_run_id)
        if standing is not None:
            return Blocked(self._refusal(standing))
        cleared = cleared or held.took_over
        now = self.clock()
        if cleared is not None:
            with contextlib.suppress(OSError):  # a full disk must not keep a stale lock
                journal(held.fd, "", "cleared stale lock", now, proof=cleared.proof)
        known = {file.name for file in fought_over}
        files = (*fought_over, *(file for file in torn.damaged(self.directory) if file.name not in known))
        aside = torn.quarantine(self.directory, held.fd, files, now)
        held.close()
        self.held = None
        return self._prove(aside, files)

    def _clear_abandoned(self, held: lock.DirectoryLock) -> Stale | None:
        if not isinstance(self.found, AbandonedContainer | AbandonedHost):
            return None
        label, owner = read_label(held.fd), read_owner(held.fd)
        if owner is None or owner != self.found.owner:
            return None
        what = "container" if isinstance(self.found, AbandonedContainer) else f"host {owner.process.here.host}"
        stale = Stale(label if isinstance(label, Label) else None, f"the {what} of its run is gone")
        return stale if clear(held.fd, stale) else None

    def _prove(self, aside: Path | None, files: tuple[Damaged, ...]) -> Outcome:
        """Enter and leave as a start would; a start that had waited and is quicker is the better proof."""
        deadline = time.monotonic() + _ENTER_S
        while True:
            entered = lock.enter(self.directory, last_run=last_run_id, settle_s=0.0)
            if isinstance(entered, lock.DirectoryLock):
                entered.release()
                return self._recovered(aside, files, None)
            if newcomer := self._newcomer():
                return self._recovered(aside, files, newcomer.process.pid)
            if time.monotonic() > deadline:
                return Blocked(self._refusal(entered))
            time.sleep(_POLL_S)

    def _recovered(self, aside: Path | None, files: tuple[Damaged, ...], taken_by: int | None) -> Recovered:
        with self._descriptor() as fd:
            newest = next(iter(checkpoint_files(fd)), None)
        return Recovered(aside, files, taken_by, newest.name if newest else "")

    def _newcomer(self) -> Owner | None:
        """The run of ours that came in through the lock since we began, None when there is none."""
        with self._descriptor() as fd:
            owner = read_owner(fd)
        is_new = owner is not None and owner.since >= self.began and process.is_alive(owner.process)
        return owner if is_new else None

    def _refusal(self, standing: lock.Refusal) -> SolorunError:
        return refusal(self.directory, standing, self.clock())
