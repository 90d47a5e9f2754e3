"""The supervisor: guards any command. It holds the lock, starts the command, forwards signals, records the end.

The command writes straight into `training.log`, and the supervisor only copies the log to the terminal: when the
supervisor is killed, the run neither loses its output nor dies of a broken pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from solorun import process
from solorun.appending import open_to_append
from solorun.causes import MemoryDeaths
from solorun.claim import Claim
from solorun.claimants import own_name
from solorun.closing import End
from solorun.errors import BadUsage, directory_problem
from solorun.foreground import Foreground
from solorun.frozen import dataclass
from solorun.gate import CANNOT_EXECUTE, Execution, Gate
from solorun.handshake import Holding, Over, Report
from solorun.hold import LOCK_VARIABLE, SUPERVISOR_VARIABLE
from solorun.label import read_plain, replace_file, unlink
from solorun.launch import LaunchPlan, TmuxSession
from solorun.logs import tail
from solorun.mirror import Mirror
from solorun.owner import ProcessId
from solorun.process import RUN_ID_VARIABLE
from solorun.record import State, read_events
from solorun.rundir import LOG, OUTPUT, PID
from solorun.settings import Settings
from solorun.signals import Signals
from solorun.stopping import POLITE, SAME_REQUEST_S
from solorun.watchdog import Watchdog

_TICK_S = 0.1
_LAST_COPY_S = 1.0
_LAST_LINES = 20
_RECENT = 1 << 16  # bytes of the journal in which a trainer's last word is looked for
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Ended:
    """How a supervised run ended.

    Args:
        state: completed, interrupted, crashed or killed.
        exit_code: what to exit with: the command's status, or 128 + signal.
        signal: that killed it, or that asked it to stop.
        seconds: how long it ran.
    """

    state: State
    exit_code: int
    signal: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Audience:
    """Who follows a run from outside.

    Args:
        output: descriptor where a person watches; None for none. In the background it is `nohup.out`.
        tell: told when the run holds its directory and executes, and when it is over.
        session: the tmux session that this happens in.
    """

    output: int | None
    tell: Callable[[Report], None] = lambda _report: None
    session: TmuxSession | None = None


def supervise(
    plan: LaunchPlan,
    made: Claim,
    audience: Audience,
    settings: Settings,
) -> Ended:
    """Run a command as the only one in a claimed results directory, to its end; the claim is let go in every case.

    Args:
        plan: what to start.
        made: the claimed directory.
        audience: who follows it.
        settings: what to watch for, and whom to tell.

    Raises:
        Held, Refused, DirectoryProblem: an old-style trainer was quicker, or the directory cannot be written.
        BadUsage: the command cannot be executed.
    """
    try:
        return _Supervisor(plan, made, audience, settings).run()
    except BaseException as error:
        # Else the label must go on telling that somebody writes here.
        made.abandon(withdraw=_is_nobody_left(made.run_id))
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise directory_problem(error, "supervise a command in", made.lock.path) from None
        raise


def _is_nobody_left(run_id: str) -> bool:
    try:
        return not process.carriers(run_id)
    except OSError:  # who cannot be looked for is not dead
        return False


class _Supervisor:
    def __init__(self, plan: LaunchPlan, made: Claim, audience: Audience, settings: Settings) -> None:
        self.plan = plan
        self.watchdog = Watchdog(made, settings, plan.env)
        self.claim = made
        self.output = audience.output
        self.tell = audience.tell
        self.session = audience.session
        self.me = process.identify_self()  # asked before the fork: in the child it would be the child
        self.child: ProcessId | None = None
        self.asked: int | None = None
        self.asked_at = 0.0
        self.is_noting = False
        self.told_survivors = False
        self.deaths = MemoryDeaths()
        self.foreground = Foreground()
        self.signals = Signals(self._hear)
        self.log_start = os.fstat(made.log.fd).st_size
        self.mirror: Mirror | None = None

    def run(self) -> Ended:
        began = time.monotonic()
        _become_subreaper()
        self.signals.listen()
        gate = Gate(self._execution(), self.foreground.terminal)
        self.child = process.identify(gate.pid) or ProcessId(process.here(), gate.pid, 0)
        try:
            self.claim.publish(self.child, self.plan.argv, supervisor=self.me, adopted=False)
            self.claim.keep(self._stop_for_conflict)  # where no thread is left for it, nothing has run yet
            self._put_files()
        except BaseException:
            self._turn_away(gate)
            self._take_pid_file_away()
            self._restore()
            raise
        if self.asked is not None:  # before there was anything that could have heard it
            self._turn_away(gate)
            died_of_it = self.asked  # as a wait status: a number below 128 is a death by that signal
            return self._finish(died_of_it, "", time.monotonic() - began)
        self._look_at_memory()
        failure = gate.let_through()
        if not failure:
            self.tell(Holding(self.claim.run_id, self.child.pid, self.me.pid))
        status = self._watch()
        return self._finish(status, failure, time.monotonic() - began)

    def _put_files(self) -> None:
        """What people look for beside the lock; a full disk must not keep a run from starting."""
        directory = self.claim.lock.fd
        with contextlib.suppress(OSError):
            replace_file(directory, PID, b"%d\n" % (self.child.pid if self.child else 0))
        if self.plan.mode == "background":
            self.output = _open_raw_output(directory)
        if self.output is not None:
            self.mirror = Mirror(directory, self.log_start, self.output)
        if self.session is not None:
            self.claim.event("in tmux", session=self.session.name, socket=self.session.socket)

    def _take_pid_file_away(self) -> None:
        """A PID that outlives its process will one day be another's."""
        with contextlib.suppress(OSError):
            if self.child and read_plain(self.claim.lock.fd, PID)[1] == b"%d\n" % self.child.pid:
                unlink(self.claim.lock.fd, PID)

    def _turn_away(self, gate: Gate) -> None:
        gate.turn_away()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(gate.pid, 0)

    def _execution(self) -> Execution:
        return Execution(
            argv=self.plan.argv,
            cwd=self.plan.cwd,
            env=self._environment(),
            output=self.claim.log.fd,
            inherited=self.claim.lock.truth,
            keeps_hangup_ignored=self.signals.ignores_hangup,
        )

    def _environment(self) -> dict[str, str]:
        return {
            **self.plan.env,
            RUN_ID_VARIABLE: self.claim.run_id,
            LOCK_VARIABLE: str(self.claim.lock.truth),
            SUPERVISOR_VARIABLE: f"{self.me.pid}:{self.me.started}",
            # A pipe or a file makes Python buffer whole blocks: the log would lag by minutes.
            "PYTHONUNBUFFERED": self.plan.env.get("PYTHONUNBUFFERED", "1"),
        }

    def _restore(self) -> None:
        self.watchdog.close()
        # While SIGTTOU is still ignored: it would suspend us here, at the very end.
        if self.child is not None:
            self.foreground.take_back(self.child.pid)
        self.signals.restore()
        if self.mirror is not None:
            self.mirror.close()

    def _hear(self, number: int) -> None:
        if number in POLITE:
            # A disk that takes long for the line must not make two requests of one that came twice: two mean "at once".
            if self.asked == number and (self.is_noting or time.monotonic() - self.asked_at < SAME_REQUEST_S):
                return
            self.asked = self.asked or number
            self.is_noting = True
            try:
                self.claim.event("stop requested", signal=number)
            finally:
                self.is_noting = False
            self.asked_at = time.monotonic()
        self._signal_run(number)

    def _stop_for_conflict(self, _reason: str) -> None:
        self.asked = self.asked or signal.SIGINT
        self._signal_run(signal.SIGINT)

    def _signal_run(self, number: int) -> None:
        """To the trainer alone when it has adopted the lock and answers itself; else to the command's whole group."""
        owner = self.claim.owner
        with contextlib.suppress(OSError):
            if owner is not None and owner.adopted and process.send(owner.process, number):
                return
            if self.child is not None and (process.send_group(self.child, number) or process.send(self.child, number)):
                return
            for survivor in self._survivors():
                process.send(survivor, number)

    def _watch(self) -> int:
        """Copy output and wait until the command and everything that it left running has ended; its wait status."""
        result: int | None = None
        while True:
            self._copy_log()
            for pid, status in _reaped():
                if self.child is None or pid != self.child.pid:
                    continue
                if os.WIFSTOPPED(status):
                    self.foreground.job_control(pid, os.WSTOPSIG(status))
                else:
                    result = status
            if result is not None:
                if self._all_have_ended():
                    self._copy_log()
                    return result
            else:
                self._relabel_if_dead()
                self.watchdog.look()
                self._look_at_memory()
            self.signals.wait(_TICK_S)

    def _all_have_ended(self) -> bool:
        try:
            survivors = self._survivors()
        except OSError:  # too many open files, no memory: who cannot be looked for is not dead, and the next tick looks
            return False
        if survivors:
            self._hold_for(survivors)
        return not survivors

    def _survivors(self) -> list[ProcessId]:
        """What the command left running."""
        run_id = self.claim.run_id
        # One look can miss a daemon that is forked while it lasts by a parent that ends before it is seen.
        return process.carriers(run_id) or self._strays() or process.carriers(run_id) or self._strays()

    def _strays(self) -> list[ProcessId]:
        """Orphans that lost the run's id with their environment (sudo, `env -i`), and still write here."""
        path = self.claim.lock.current_path()
        place = os.path.realpath(path) if path else ""
        # They became our children when their parents died (Linux); another place's runs are told by where they write.
        return [
            one
            for one in (process.descendants(self.me) if place else ())
            if any(file.writes and own_name(file.path, place) for file in process.files_open_below(one.pid, place))
        ]

    def _hold_for(self, survivors: list[ProcessId]) -> None:
        owner = self.claim.owner
        if owner is not None and owner.process not in survivors:
            # A label with a dead PID would let an old-style trainer in. A full disk must not end the guarding.
            with contextlib.suppress(OSError):
                self.claim.relabel(survivors[0])
        if not self.told_survivors:
            self.told_survivors = True
            self.asked_at = 0.0  # what was asked before, the command has heard; its survivors have not
            pids = ", ".join(str(survivor.pid) for survivor in survivors)
            self.claim.event("survivors", pids=[survivor.pid for survivor in survivors])
            self.claim.log.write(
                f"solorun: the command ended, but processes of it still run (PID {pids}); "
                f"the directory stays held until they end (`solorun stop` ends them)"
            )

    def _look_at_memory(self) -> None:
        owner = self.claim.owner
        if owner is not None:
            self.deaths.look(owner.process.pid)

    def _relabel_if_dead(self) -> None:
        owner = self.claim.owner
        if owner is None or self.child is None or owner.process == self.child or process.is_alive(owner.process):
            return
        with contextlib.suppress(OSError):
            self.claim.relabel(self.child)

    def _copy_log(self) -> None:
        if self.mirror is not None:
            self.mirror.copy()

    def _finish(self, status: int, failure: str, seconds: float) -> Ended:
        outcome = Ended("crashed", CANNOT_EXECUTE, None, seconds) if failure else _ended(status, self.asked, seconds)
        if outcome.state == "crashed" and not failure:
            outcome = self._as_its_trainer_ended(outcome)
        why = failure or (process.signal_name(outcome.signal) if outcome.signal else "")
        lines = self._last_lines()
        self._take_pid_file_away()
        if outcome.state == "killed" and outcome.signal == signal.SIGKILL and self.asked is None:
            why = "; ".join(filter(None, (why, self.deaths.silence())))
        self.claim.end(End(outcome.state, outcome.exit_code, outcome.signal, why, self._memory_evidence))
        why = (self.claim.record.why if self.claim.record else "") or why
        if self.mirror is not None:
            self.mirror.finish(_LAST_COPY_S)
        self.watchdog.ended(outcome.state, exit_code=outcome.exit_code, signal=outcome.signal, why=why, seconds=seconds)
        self._restore()
        self.tell(Over(outcome.state, outcome.exit_code, lines))
        if failure:
            raise BadUsage(f"cannot execute {self.plan.argv[0]!r}: {failure}", "check the command after `--`")
        return outcome

    def _as_its_trainer_ended(self, outcome: Ended) -> Ended:
        """A launcher such as torchrun calls it a failure, status 1, when its trainer leaves gracefully after a stop."""
        last: dict[str, Any] = {}
        with contextlib.suppress(OSError):
            for event in read_events(self.claim.lock.fd, ("adopted", "trainer finished"), _RECENT):
                handed_back = self.child is not None and event.get("pid") == self.child.pid
                last = event if event.get("run_id") == self.claim.run_id and not handed_back else last
        code, number = last.get("exit_code"), last.get("signal")
        if last.get("state") != "interrupted" or number not in POLITE or not isinstance(code, int):
            return outcome
        return Ended("interrupted", code, number, outcome.seconds)

    def _memory_evidence(self) -> str:
        """What the kernel tells of memory that ran out, for a run that was killed though nobody asked it to stop."""
        owner, record = self.claim.owner, self.claim.record
        if self.asked is not None or owner is None or record is None:
            return ""
        return self.deaths.evidence({owner.process.pid, self.child.pid if self.child else 0}, record.started)

    def _last_lines(self) -> tuple[str, ...]:
        try:
            fd = os.open(LOG, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.claim.lock.fd)
        except OSError:
            return ()
        try:
            return tuple(tail(fd, _LAST_LINES, start=self.log_start))
        except OSError:
            return ()
        finally:
            os.close(fd)


def _open_raw_output(directory: int) -> int | None:
    """`nohup.out`, appended to, as the standard output and error of a supervisor that has no terminal."""
    try:
        fd = open_to_append(directory, OUTPUT)
    except OSError:
        return None
    os.dup2(fd, 1, inheritable=True)
    os.dup2(fd, 2, inheritable=True)
    return fd


def _reaped() -> list[tuple[int, int]]:
    """Children that ended or were suspended since the last call, with their wait status."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, status))


def _ended(status: int, asked: int | None, seconds: float) -> Ended:
    """What a wait status says of a command that was, or was not, asked to end by a signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return Ended("interrupted" if number in POLITE else "killed", 128 + number, number, seconds)
    code = os.WEXITSTATUS(status)
    # What the terminal sent went to the command alone; its exit status tells which signal that was.
    asked = asked or (code - 128 if code - 128 in POLITE else None)
    return Ended(_state(code, asked), code, asked, seconds)


def _state(code: int, asked: int | None) -> State:
    if code - 128 in POLITE or (asked is not None and code == 0):
        return "interrupted"
    return "completed" if code == 0 else "crashed"


def _become_subreaper() -> None:
    """Linux: orphans of the run become our children, so none of them can hide from the wait at the end."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
