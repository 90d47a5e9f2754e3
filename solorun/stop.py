"""Stop a run: ask, wait, prove; escalate only when told to."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from solorun import lock, process
from solorun.claim import clear_stale
from solorun.closing import End, write_end
from solorun.errors import Refused, directory_problem
from solorun.frozen import dataclass
from solorun.patience import Action, next_action
from solorun.patience import StopPolicy as StopPolicy
from solorun.progress import Progress, read_progress
from solorun.record import journal, read_record
from solorun.rundir import CheckpointFile, checkpoint_files
from solorun.target import Pursuit, Target, find, was_asked
from solorun.wording import ago

_POLL_S = 0.05
_LEFTOVERS_S = 2.0
_REMIND_S = 15.0


@dataclass(frozen=True, slots=True)
class Unseen:
    """The directory could not be looked into: which checkpoints lie there cannot be told.

    Args:
        why: one line, the system's.
    """

    why: str


Kept = CheckpointFile | Unseen | None
"""The newest checkpoint in the directory; None where there is none."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run ended by itself.

    Args:
        after_s: seconds since it was asked.
        step: its last one; None for a run that reports none.
        checkpoint: the newest one in the directory.
    """

    after_s: float
    step: int | None
    checkpoint: Kept


@dataclass(frozen=True, slots=True)
class WasNotRunning:
    """There was nothing to stop."""


@dataclass(frozen=True, slots=True)
class Killed:
    """The run had to be ended the hard way, and every process of it is proven dead.

    Args:
        after_s: seconds since it was asked.
        signal: the strongest that it took, SIGTERM or SIGKILL.
        checkpoint: the newest one that survives.
        step: the last one it reported; None for a run that reports none.
    """

    after_s: float
    signal: int
    checkpoint: Kept
    step: int | None


@dataclass(frozen=True, slots=True)
class StillRunning:
    """The patience is over and the run lives.

    Args:
        phase: what it is doing, `unknown` when it does not say.
        pids: processes that have not ended.
        after_s: seconds since it was asked.
        checkpoint: the newest one, which a kill would leave.
        step: the last one it reported.
    """

    phase: str
    pids: tuple[int, ...]
    after_s: float = 0.0
    checkpoint: Kept = None
    step: int | None = None


StopResult = Stopped | WasNotRunning | Killed | StillRunning


def what_survives(step: int | None, checkpoint: Kept) -> str:
    """What of a run is on the disk, in words.

    Args:
        step: the last one it reported; None when it reports none.
        checkpoint: the newest one in the directory.
    """
    if isinstance(checkpoint, Unseen):
        return f"its directory cannot be looked into, so which checkpoint is the newest is not known: {checkpoint.why}"
    if checkpoint is None:
        if step is None:
            return "it reported no steps, and there is no checkpoint file"
        return (
            "no step was made: nothing was owed" if step == 0 else f"no checkpoint file is there: {_steps(step)} lost"
        )
    if step is None or step <= checkpoint.step:
        return f"newest checkpoint: {checkpoint.name}"
    lost = step - checkpoint.step
    return f"newest checkpoint: {checkpoint.name}; {_steps(lost)} after it {'is' if lost == 1 else 'are'} lost"


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
        target = find(directory, sleep)
    except OSError as error:
        raise directory_problem(error, "look into", directory) from None
    if target is None:
        return WasNotRunning()
    try:
        return _Stop(directory, target, policy, tell, clock).run(sleep)
    except PermissionError:
        who = target.owner.user if target.owner else "another user"
        raise Refused(
            f"the run in {str(directory)!r} belongs to {who}, and the system does not let you signal it",
            f"ask {who}, or use an account that may",
        ) from None


class _Stop:
    """One stop, from the question to the proof."""

    def __init__(
        self,
        directory: Path,
        target: Target,
        policy: StopPolicy,
        tell: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.directory = directory
        self.target = target
        self.policy = policy
        self.tell = tell
        self.clock = clock
        self.began = clock()
        self.sent: int = signal.SIGINT
        self.sent_at = 0.0
        self.saving_at: float | None = None
        self.leader_gone_at: float | None = None
        self.told_extension = self.asked_leftovers = False
        self.phase = ""
        self.told_at = 0.0
        self.last: Progress | None = None  # a run that waited for this one's end overwrites the heartbeat at once
        self.pursuit = Pursuit(directory, target, clock)

    def run(self, sleep: Callable[[float], None]) -> StopResult:
        """Ask, then wait and escalate as the policy says."""
        self.pursuit.living()  # before the question: what the trainer leaves behind could not be told later
        self.last = self._progress()
        self._ask()
        self._say(self.last, 0.0)  # of before the question, too: it may be over when it is looked at next
        while True:
            rest = self.pursuit.rest()
            elapsed = self.clock() - self.began
            progress = self.last = self._progress() or self.last
            if progress is not None and progress.phase == "saving":
                self.saving_at = elapsed
            action = next_action(
                self.policy,
                elapsed,
                alive=bool(rest),
                sent=self.sent,
                sent_at_s=self.sent_at,
                saving_at_s=self.saving_at,
            )
            if action is Action.DONE:
                return self._done(elapsed, progress)
            if action is Action.GIVE_UP:
                pids = tuple(one.pid for one in rest)
                return StillRunning(
                    progress.phase if progress else "unknown", pids, elapsed, self._checkpoint(), _step(progress)
                )
            if action is not Action.WAIT:
                self._escalate(signal.SIGTERM if action is Action.TERM else signal.SIGKILL, elapsed)
            elif self.sent == signal.SIGKILL:
                self.pursuit.signal(signal.SIGKILL)  # also what was started since
            else:
                self._say(progress, elapsed)
                self._ask_leftovers(progress, elapsed)
                self.pursuit.wake()
            sleep(_POLL_S)

    def _ask(self) -> None:
        """Ask once: a second SIGINT would make the run leave without a checkpoint."""
        target = self.target
        with _opened(self.directory) as fd:
            if target.request == signal.SIGINT and target.owner is not None and was_asked(fd, target.run_id):
                self.tell("it was asked to stop before; waiting for it")
                return
            pid = target.owner.process.pid if target.owner else ", ".join(str(p.pid) for p in target.others)
            self.tell(f"asking PID {pid} to stop ({process.signal_name(target.request)})")
            target.ask()
            # Written down only now: who may not signal the run must not keep others from asking it.
            self._journal(fd, "stop requested", target.request)

    def _journal(self, fd: int, event: str, number: int) -> None:
        with contextlib.suppress(OSError):
            user = process.user_name(os.getuid())
            journal(fd, self.target.run_id, event, time.time(), by=user, signal=int(number))

    def _escalate(self, number: int, elapsed: float) -> None:
        self.tell(f"still alive after {elapsed:.0f} s: {process.signal_name(number)} to the whole run")
        self.sent, self.sent_at = number, elapsed
        with contextlib.suppress(OSError), _opened(self.directory) as fd:
            self._journal(fd, "killed" if number == signal.SIGKILL else "escalated", number)
        self.pursuit.signal(number)

    def _say(self, progress: Progress | None, elapsed: float) -> None:
        """What it is doing, whenever that changes and now and then."""
        phase = progress.phase if progress is not None else ""
        if phase and phase != self.phase:
            self.tell(f"it is {phase} ({_where(progress)}) ...")
            self.told_at = elapsed
        elif elapsed - self.told_at > _REMIND_S:
            self.tell(f"still {phase or 'running'} after {ago(elapsed)} ...")
            self.told_at = elapsed
        self.phase = phase
        if phase == "saving" and elapsed >= self.policy.graceful_s and not self.told_extension:
            self.tell(f"it is saving: up to {ago(self.policy.save_extension_s)} more for that before anything else")
            self.told_extension = True

    def _ask_leftovers(self, progress: Progress | None, elapsed: float) -> None:
        """Ask what the trainer left running, a moment after its end; not what saves, and nobody twice."""
        if self.sent != signal.SIGINT or not self.pursuit.leader_is_gone():
            return
        if self.asked_leftovers:
            if (newcomer := self.pursuit.ask_newcomer()) is not None:
                self.tell(f"PID {newcomer.pid} of it has begun to train meanwhile: asking that too")
            return
        if self.leader_gone_at is None or (progress is not None and progress.phase == "saving"):
            self.leader_gone_at = elapsed
        elif elapsed - self.leader_gone_at > _LEFTOVERS_S and (left := self.pursuit.unasked()):
            self.asked_leftovers = True
            pids = ", ".join(str(one.pid) for one in left)
            self.tell(f"the trainer has ended, but PID {pids} of it still runs: asking that too")
            self.pursuit.ask_leftovers(left)

    def _progress(self) -> Progress | None:
        """The heartbeat of this run."""
        try:
            with _opened(self.directory) as fd:
                found = read_progress(fd)
        except OSError:
            return None
        return found if found is not None and found.run_id == self.target.run_id else None

    def _checkpoint(self) -> Kept:
        try:
            with _opened(self.directory) as fd:
                return next(iter(checkpoint_files(fd, os.listdir(fd))), None)
        except OSError as error:  # also one that was moved, with its checkpoints
            return Unseen(error.strerror or type(error).__name__)

    def _done(self, elapsed: float, progress: Progress | None) -> StopResult:
        """What the end was; a lock that a killed run left is cleared, since its death is proven here."""
        with contextlib.suppress(OSError):
            self._write_down()
            clear_stale(self.directory, time.time())
        step, checkpoint = _step(progress), self._checkpoint()
        if self.sent == signal.SIGINT:
            return Stopped(elapsed, step, checkpoint)
        return Killed(elapsed, int(self.sent), checkpoint, step)

    def _write_down(self) -> None:
        """Write how the run ended, where nobody was left to do that, and nobody has started a new one."""
        with _opened(self.directory) as fd:
            last = read_record(fd)
        if last is None or last.run_id != self.target.run_id or last.state != "running":
            return
        entered = lock.enter(self.directory, settle_s=0)
        if not isinstance(entered, lock.DirectoryLock):
            return
        try:
            record = read_record(entered.fd)
            if record is not None and record.run_id == self.target.run_id and record.state == "running":
                killed = self.sent == signal.SIGKILL
                number = int(self.target.request if self.sent == signal.SIGINT else self.sent)
                why = f"{process.signal_name(number)} from `solorun stop`"
                end = End("killed" if killed else "interrupted", 128 + number if killed else None, number, why)
                write_end(entered.fd, self.directory.absolute(), record, end, time.time())
        finally:
            entered.release()


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _step(progress: Progress | None) -> int | None:
    return progress.step if progress is not None else None


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number} steps"


def _where(progress: Progress | None) -> str:
    if progress is None or not progress.step:
        return "no step yet"
    return f"step {progress.step}" + (f" of {progress.total}" if progress.total else "")
