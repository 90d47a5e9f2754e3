"""Stop a run: ask, wait, prove; escalate only when told to."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from solorun import process
from solorun.claim import clear_stale
from solorun.errors import Refused, directory_problem
from solorun.label import look, look_at, read_owner
from solorun.owner import Foreign, Held, Owner, ProcessId, Unknown
from solorun.progress import read_progress
from solorun.record import journal, read_events, read_record
from solorun.refusal import refusal

_POLL_S = 0.05
_TERM_GRACE_S = 10.0
_KILL_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class StopPolicy:
    """How patient to be.

    Args:
        graceful_s: seconds to wait for the run's own end, with its checkpoint.
        kill: afterwards TERM, then KILL, the whole run.
    """

    graceful_s: float = 60.0
    kill: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run ended by itself."""

    after_s: float
    step: int | None


@dataclass(frozen=True, slots=True)
class WasNotRunning:
    """There was nothing to stop."""


@dataclass(frozen=True, slots=True)
class Killed:
    """The run had to be killed."""

    after_s: float
    signal: int


@dataclass(frozen=True, slots=True)
class StillRunning:
    """The grace is over and the run lives."""

    phase: str
    pids: tuple[int, ...]


StopResult = Stopped | WasNotRunning | Killed | StillRunning


class Action(Enum):
    """What a stop does next."""

    WAIT = auto()
    TERM = auto()
    KILL = auto()
    GIVE_UP = auto()
    DONE = auto()


def next_action(policy: StopPolicy, elapsed_s: float, *, alive: bool, sent: int) -> Action:
    """Decide the next action.

    Args:
        policy: how patient to be.
        elapsed_s: seconds since the run was asked.
        alive: whether any process of it lives.
        sent: the strongest signal that was sent so far.
    """
    if not alive:
        return Action.DONE
    if elapsed_s < policy.graceful_s:
        return Action.WAIT
    if not policy.kill:
        return Action.GIVE_UP
    if sent == signal.SIGINT:
        return Action.TERM
    if elapsed_s < policy.graceful_s + _TERM_GRACE_S:
        return Action.WAIT
    if sent == signal.SIGTERM:
        return Action.KILL
    return Action.WAIT if elapsed_s < policy.graceful_s + _TERM_GRACE_S + _KILL_GRACE_S else Action.GIVE_UP


@dataclass(frozen=True, slots=True)
class _Target:
    """The processes of a run, and which of them to ask."""

    run_id: str
    owner: Owner | None
    survivors: tuple[ProcessId, ...]

    @property
    def request(self) -> int:
        """What to ask with: SIGTERM where it is known to be graceful and never to mean "at once", else SIGINT.

        A trainer of ours may be saving because of an earlier Ctrl-C; another one would make it leave. Old-style
        trainers and most commands know only SIGINT as a graceful end.
        """
        ours = self.owner is not None and self.owner.adopted and self.owner.run_id
        return signal.SIGTERM if ours else signal.SIGINT

    def ask(self) -> None:
        """Send a polite signal to whom answers it for the whole run."""
        owner, number = self.owner, self.request
        if owner is not None:
            if owner.adopted and process.send(owner.process, number):
                return
            if owner.supervisor is not None and process.send(owner.supervisor, number):
                return
            if process.send_group(owner.process, number) or process.send(owner.process, number):
                return
        self.signal_all(number)

    def signal_all(self, number: int) -> None:
        """Send a signal to every process of the run."""
        for member in self.members():
            process.send(member, number)

    def members(self) -> list[ProcessId]:
        """Live processes of the run, the supervisor left out: it ends by itself and writes down how."""
        found = dict.fromkeys(self.survivors)
        if self.owner is not None:
            found[self.owner.process] = None
        if self.run_id:
            found.update(dict.fromkeys(process.carriers(self.run_id)))
        return [member for member in found if process.is_alive(member)]


def stop(
    directory: Path,
    policy: StopPolicy,
    *,
    tell: Callable[[str], None] = lambda _line: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> StopResult:
    """End the run of a directory, and return only when that is proven or the patience is over.

    Args:
        directory: the results directory.
        policy: how patient to be.
        tell: told in one line what is going on.
        clock: monotonic seconds.
        sleep: waits.

    Raises:
        Refused: its owner is of another host, PID namespace or user, or cannot be told; nothing was touched.
        DirectoryProblem: the directory cannot be read.
    """
    try:
        target = _find(directory)
    except OSError as error:
        raise directory_problem(error, "look into", directory) from None
    if target is None:
        return WasNotRunning()
    began = clock()
    try:
        sent = _ask(directory, target, tell)
        return _wait(directory, target, policy, sent, began, tell, clock, sleep)
    except PermissionError:
        who = target.owner.user if target.owner else "another user"
        raise Refused(
            f"the run in {str(directory)!r} belongs to {who}, and the system does not let you signal it",
            f"ask {who}, or use an account that may",
        ) from None


def _find(directory: Path) -> _Target | None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        verdict = look_at(fd)
        record, last = read_owner(fd), read_record(fd)
    finally:
        os.close(fd)
    if isinstance(verdict, Foreign | Unknown):
        raise refusal(directory, verdict, time.time())
    if isinstance(verdict, Held):
        # Beside the label of an old-style trainer there may lie the record of a run that is long dead.
        owner = record if record and process.is_alive(record.process) else _unrecorded(directory, verdict)
        return _Target(owner.run_id if owner else "", owner, ())
    run_id = record.run_id if record else last.run_id if last else ""
    survivors = tuple(process.carriers(run_id)) if run_id else ()
    return _Target(run_id, None, survivors) if survivors else None


def _unrecorded(directory: Path, held: Held) -> Owner | None:
    """An old-style trainer, which has a label and nothing else."""
    found = process.identify(held.pid) if held.pid else None
    if found is None:
        return None
    user = process.user_of(found.pid)
    return Owner("", found, None, True, user, process.argv(found.pid), "", 0.0, str(directory), 0)


def _ask(directory: Path, target: _Target, tell: Callable[[str], None]) -> int:
    """Ask once: a second SIGINT would make the run leave without a checkpoint."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if target.request == signal.SIGINT and target.owner is not None and _was_asked(fd, target.run_id):
            tell("it was asked to stop before; waiting for it")
            return signal.SIGINT
        pid = target.owner.process.pid if target.owner else ", ".join(str(p.pid) for p in target.survivors)
        tell(f"asking PID {pid} to stop ({process.signal_name(target.request)})")
        target.ask()
        # Written down only now: who may not signal the run must not keep others from asking it.
        with contextlib.suppress(OSError):
            user = process.user_name(os.getuid())
            journal(fd, target.run_id, "stop requested", time.time(), by=user, signal=int(target.request))
    finally:
        os.close(fd)
    return signal.SIGINT


def _was_asked(directory: int, run_id: str) -> bool:
    """Whether the run as it is now was asked a moment ago.

    Survivors that it left, and a trainer that came later, have heard nothing yet; and what did not end a command
    within the usual grace may be asked again.
    """
    asked = False
    for event in read_events(directory):
        if run_id and event.get("run_id") == run_id:
            if event["event"] == "stop requested":
                asked = time.time() - float(event.get("time", 0)) < StopPolicy().graceful_s
            elif event["event"] in ("survivors", "adopted"):
                asked = False
    return asked


def _wait(
    directory: Path,
    target: _Target,
    policy: StopPolicy,
    sent: int,
    began: float,
    tell: Callable[[str], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> StopResult:
    phase = ""
    while True:
        elapsed = clock() - began
        action = next_action(policy, elapsed, alive=_is_alive(directory, target), sent=sent)
        if action is Action.DONE:
            return _result(directory, target, sent, elapsed)
        if action is Action.GIVE_UP:
            return StillRunning(phase or "unknown", tuple(member.pid for member in target.members()))
        if action in (Action.TERM, Action.KILL):
            sent = signal.SIGTERM if action is Action.TERM else signal.SIGKILL
            tell(f"still alive after {elapsed:.0f} s: {process.signal_name(sent)} to the whole run")
            target.signal_all(sent)
        now = _phase(directory, target)
        if now != phase and now:
            tell(f"it is {now} ...")
        phase = now
        sleep(_POLL_S)


def _is_alive(directory: Path, target: _Target) -> bool:
    """Whether any process of the run lives, or its supervisor has not let go yet."""
    if target.members():
        return True
    supervisor = target.owner.supervisor if target.owner else None
    if supervisor is None or not process.is_alive(supervisor):
        return False
    try:
        return isinstance(look(directory), Held) or _is_same_run(directory, target.run_id)
    except OSError:
        return False


def _is_same_run(directory: Path, run_id: str) -> bool:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        record = read_owner(fd)
    finally:
        os.close(fd)
    return record is not None and record.run_id == run_id


def _phase(directory: Path, target: _Target) -> str:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        progress = read_progress(fd)
    finally:
        os.close(fd)
    return progress.phase if progress and progress.run_id == target.run_id else ""


def _result(directory: Path, target: _Target, sent: int, elapsed: float) -> StopResult:
    """What the end was; a lock that a killed run left is cleared, since its death is proven here."""
    step = None
    with contextlib.suppress(OSError):
        clear_stale(directory, time.time())
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            progress = read_progress(fd)
        finally:
            os.close(fd)
        step = progress.step if progress and progress.run_id == target.run_id else None
    return Killed(elapsed, sent) if sent == signal.SIGKILL else Stopped(elapsed, step)
