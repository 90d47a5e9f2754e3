"""What a trainer uses: `with hold(directory) as run`. Lock, stop request, heartbeat, metrics, journal.

Run by hand, `hold` takes the lock itself. Under `solorun start` it adopts the supervisor's lock: the same open
directory, inherited by descriptor, so that either of the two may die and the directory stays held.
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from solorun import lock, process
from solorun.claim import Claim, claim
from solorun.closing import End
from solorun.errors import Held, directory_problem
from solorun.frozen import replace
from solorun.label import read_owner
from solorun.owner import Owner, ProcessId, told
from solorun.process import RUN_ID_VARIABLE
from solorun.progress import Heartbeat
from solorun.record import State, read_record, write_record
from solorun.rundir import RunDir, checkpoint_step
from solorun.stopping import StopRequest
from solorun.truth import open_closed_streams

LOCK_VARIABLE = "SOLORUN_LOCK_FD"
"""Under a supervisor: the number of the inherited descriptor that carries the lock."""

SUPERVISOR_VARIABLE = process.SUPERVISOR_VARIABLE
"""Under a supervisor: its PID and start token, so that the trainer can tell whether it still lives."""


class Run:
    """A run that holds its results directory.

    Args:
        claim: the held directory.
        heartbeat: the writing end of `progress`.
        stop: where signals and conflicts are noted.
        adopted: whether a supervisor made the claim.
    """

    def __init__(self, claim: Claim, heartbeat: Heartbeat, stop: StopRequest, *, adopted: bool) -> None:
        self._claim = claim
        self._heartbeat = heartbeat
        self._stop = stop
        self.adopted = adopted
        self.run_id = claim.run_id
        self.previous_run_id = claim.previous_run_id()
        """The run before this one in the directory; None when there is none."""

    @property
    def directory(self) -> Path:
        """Where the results directory is now, even if somebody moved it.

        Raises:
            DirectoryProblem: it was deleted.
        """
        path = self._claim.lock.current_path()
        if path is None:
            gone = FileNotFoundError(2, os.strerror(2))
            raise directory_problem(gone, "write in the deleted directory", self._claim.lock.path)
        return Path(path)

    @property
    def should_stop(self) -> bool:
        """Whether to leave at the next safe point: SIGINT, SIGTERM, SIGHUP, `solorun stop`, or a lost directory."""
        return self._stop.asked

    @property
    def stop_reason(self) -> str:
        """Why, empty while nothing asks for a stop."""
        return self._stop.reason

    @property
    def exit_code(self) -> int:
        """What the process shall exit with: 0, 128 + signal after a graceful stop, 1 after a lost directory."""
        return self._stop.exit_code

    def ask_to_stop(self, reason: str, signal: int | None = None) -> None:
        """Ask this run to stop, as a signal to it would: another process of the run has heard one.

        Args:
            reason: for the log and the journal.
            signal: its number, for the exit code; None where there was none, and the run then exits with 1.
        """
        self._stop.ask(reason, signal)

    def progress(self, step: int, total: int = 0, **metrics: float) -> None:
        """Report a finished step: microseconds. With metrics, one more line in `metrics.jsonl`.

        Args:
            step: steps done so far.
            total: steps wanted; 0 when not known.
            metrics: by name; leave them out on steps that are not logged.
        """
        self._heartbeat.advance(step, total)
        if metrics:
            self.metrics({"step": step, **metrics})

    def metrics(self, values: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`, with the run id. A full disk costs the line, never the run."""
        self._claim.metrics(values)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Be in another phase for a while: evaluating, sampling, saving, tokenizing."""
        before, began = self._heartbeat.phase, time.monotonic()
        self._heartbeat.begin(name)
        try:
            yield
        finally:
            self._heartbeat.finish(name, time.monotonic() - began)
            self._heartbeat.begin(before)

    def enter_phase(self, name: str) -> None:
        """Be in another phase from now on."""
        self._heartbeat.begin(name)

    def beat(self) -> None:
        """Say, within a long phase, that the run is alive."""
        self._heartbeat.beat()

    def log(self, line: str) -> None:
        """Append a line to `training.log`, unless the standard output already goes there."""
        if not self._claim.log.is_stdout:
            self._claim.log.write(line)

    def event(self, name: str, **facts: Any) -> None:
        """Write an event into the directory's journal."""
        self._claim.event(name, **facts)

    def archive(self, patterns: Sequence[str]) -> Path | None:
        """Move what earlier runs left under these names into `archive/RUN_ID/`; log and journal stay.

        Args:
            patterns: file names as a shell writes them.

        Returns:
            Where the files are now; None when there was nothing.

        Raises:
            DirectoryProblem: a file cannot be moved; what was moved stays moved, nothing is lost.
        """
        directory = self.directory
        try:
            names = [name for name in os.listdir(directory) if any(fnmatch.fnmatch(name, p) for p in patterns)]
        except OSError as error:
            raise directory_problem(error, "look into", directory) from None
        if not names:
            return None
        # The newest checkpoint last: where this is cut short, no older one is taken for the newest.
        names.sort(key=lambda name: (-1 if (step := checkpoint_step(name)) is None else step, name))
        # The id comes out of a file: without this a crafted one could name a path elsewhere.
        previous = re.sub(r"[^A-Za-z0-9_-]", "-", self.previous_run_id or f"before-{self.run_id}")
        place = RunDir(directory).archive(previous)
        try:
            place.mkdir(parents=True, exist_ok=True)
            for name in names:
                (directory / name).rename(_free_name(place / name))
        except OSError as error:
            raise directory_problem(error, "archive into", place) from None
        self.event("archived", run=previous, files=len(names))
        return place

    def describe(self, *, fingerprint: str, parent_run_id: str | None) -> None:
        """Write down which configuration this run trains, and which run's checkpoint it continues."""
        record = read_record(self._claim.lock.fd)
        if record is not None and record.run_id == self.run_id:
            with contextlib.suppress(OSError):
                described = replace(record, fingerprint=fingerprint, parent_run_id=parent_run_id)
                write_record(self._claim.lock.fd, described)


class hold:  # noqa: N801 - used as a verb: `with hold(directory) as run`
    """Hold a results directory for the length of a `with` block.

    Leaving the block after a stop request raises SystemExit with 128 + signal, so that a trainer of ten lines has
    the right exit status too. An exception is written to the log and the journal, and goes on.

    Args:
        directory: the results directory; made if it is missing.
        announce: told the one line `Released lock` at the end, for a trainer that prints to a terminal.
        exit_on_stop: whether to raise SystemExit after a graceful stop.
        settle_s: how long to watch for an old-style trainer that races with this start.
        launcher: PID of what started this process beside others of the same run (torchrun). It and all that it
            started count as the run: a stop waits for them too.

    Raises:
        Held: (on entering) another run holds it; tells who, since when, and what to do.
        Refused: (on entering) its owner is of another host or PID namespace, or cannot be told.
        DirectoryProblem: (on entering) it cannot be used.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        announce: Callable[[str], None] = lambda _line: None,
        exit_on_stop: bool = True,
        settle_s: float = lock.SETTLE_S,
        launcher: int | None = None,
    ) -> None:
        self._directory = directory
        self._announce = announce
        self._exit_on_stop = exit_on_stop
        self._settle_s = settle_s
        self._launcher = launcher
        self._stop = StopRequest()
        self._pid = 0
        self._before: Owner | None = None
        self._outer_run_id: str | None = None

    def __enter__(self) -> Run:
        self._pid = os.getpid()
        self._stop.listen()
        try:
            open_closed_streams()
            self._run = self._adopt() or self._take()
        except OSError as error:
            self._stop.forget()
            raise directory_problem(error, "use", self._directory) from None
        except BaseException:
            self._stop.forget()
            raise
        return self._run

    def _take(self) -> Run:
        made = claim(self._directory, time.time, self._settle_s)
        heartbeat: Heartbeat | None = None
        try:
            launcher = process.identify(self._launcher) if self._launcher else None
            made.publish(process.identify_self(), _command_line(), supervisor=None, adopted=True, launcher=launcher)
            heartbeat = _claimed_heartbeat(made)
            made.keep(lambda reason: self._stop.ask(reason))
        except BaseException as error:
            if heartbeat is not None:
                heartbeat.close()
            made.abandon()
            if isinstance(error, OSError):
                raise directory_problem(error, "write in", self._directory) from None
            raise
        # Children that close every descriptor still carry this, and the next start can see them.
        self._outer_run_id = os.environ.get(RUN_ID_VARIABLE)
        os.environ[RUN_ID_VARIABLE] = made.run_id
        return Run(made, heartbeat, self._stop, adopted=False)

    def _adopt(self) -> Run | None:
        number, run_id = os.environ.get(LOCK_VARIABLE, ""), os.environ.get(RUN_ID_VARIABLE, "")
        if not number.isdigit() or not run_id:
            return None
        held = inherited = lock.adopt(self._directory, int(number))
        if held is None and _supervisor_lives():
            held = lock.join(self._directory, run_id)
        if held is None:
            return None
        made: Claim | None = None
        heartbeat: Heartbeat | None = None
        try:
            made = Claim(held, run_id, None, time.time)
            heartbeat = _claimed_heartbeat(made)
            owner = read_owner(held.fd)
            if owner is not None and owner.run_id == run_id:
                self._before = owner
                made.owner = replace(owner, process=process.identify_self(), adopted=True, argv=told(_command_line()))
                held.take_label_for_ours(owner.process.pid)
                held.relabel(made.owner)
                made.keep(lambda reason: self._stop.ask(reason))
        except BaseException:
            if heartbeat is not None:
                heartbeat.close()
            if held is inherited:
                held.truth = held.fd  # what was inherited may carry another hold of this process: that stays open
            _let_go(held, made)
            raise
        return Run(made, heartbeat, self._stop, adopted=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:  # a forked child leaves the block too; the directory is its parent's
            return
        self._stop.leaving = True
        state, code, why = self._outcome(kind, error)
        if state == "crashed" and kind is not SystemExit:  # who exits on purpose has said why
            text = "".join(traceback.format_exception(kind, error, trace)).rstrip()
            self._run.log(text)
        made = self._run._claim  # noqa: SLF001 - the two halves of one room
        if not self._run.adopted:
            self._restore_run_id()
            made.end(End(state, code, self._stop.signal, why), self._announce)
        else:
            self._leave_to_supervisor(made, state, code, why)
        self._run._heartbeat.close()  # noqa: SLF001 - a later `hold` of this process must be able to claim it
        self._stop.forget()
        if kind is None and self._stop.asked and self._exit_on_stop:
            raise SystemExit(self._run.exit_code)

    def _restore_run_id(self) -> None:
        if self._outer_run_id is None:
            os.environ.pop(RUN_ID_VARIABLE, None)
        else:
            os.environ[RUN_ID_VARIABLE] = self._outer_run_id

    def _leave_to_supervisor(self, made: Claim, state: State, code: int, why: str) -> None:
        made.event("trainer finished", state=state, why=why, exit_code=code, signal=self._stop.signal)
        if _supervisor_lives():  # it reaps us, writes down the end and releases
            made.hand_back(self._before)
            made.lock.truth = made.lock.fd  # what was inherited stays open: it carries the run's lock
            made.abandon(withdraw=False)
            return
        made.event("supervisor was gone")
        made.end(End(state, code, self._stop.signal, why), self._announce)

    def _outcome(self, kind: type[BaseException] | None, error: BaseException | None) -> tuple[State, int, str]:
        if kind is None or (kind is SystemExit and self._stop.asked and self._is_answer(error)):
            return ("interrupted", self._run.exit_code, self._stop.reason) if self._stop.asked else ("completed", 0, "")
        if kind is KeyboardInterrupt:
            return "interrupted", 130, "SIGINT twice: left at once"
        if kind is SystemExit and isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            return ("completed" if code == 0 else "crashed"), code, "" if code == 0 else f"exit status {code}"
        return "crashed", 1, f"{kind.__name__}: {error}".splitlines()[0][:300]

    def _is_answer(self, error: BaseException | None) -> bool:
        """Whether an exit answers the stop; another status than that says that something else went wrong."""
        return isinstance(error, SystemExit) and error.code in (None, 0, self._run.exit_code)


def _let_go(held: lock.DirectoryLock, made: Claim | None) -> None:
    if made is None:
        held.close()
    else:
        made.abandon(withdraw=False)


def _claimed_heartbeat(made: Claim) -> Heartbeat:
    heartbeat = Heartbeat(made.lock.fd, made.run_id)
    try:
        if heartbeat.claim():
            return heartbeat
    except BaseException:
        heartbeat.close()
        raise
    heartbeat.close()
    path = made.lock.path
    raise Held(
        f"{path!r} is already trained in by another process of this very run ({made.run_id})",
        f"start one trainer per results directory; see: solorun status {path}",
    )


def _command_line() -> tuple[str, ...]:
    return process.argv(os.getpid()) or (sys.executable, *sys.argv)


def _supervisor_lives() -> bool:
    pid, _, started = os.environ.get(SUPERVISOR_VARIABLE, "").partition(":")
    if not (pid.isdigit() and started.isdigit()):
        return False
    return process.is_alive(ProcessId(process.here(), int(pid), int(started)))


def _free_name(path: Path) -> Path:
    """The path, or one beside it that nothing has yet: an archive never overwrites."""
    return next(p for n in itertools.count() if not os.path.lexists(p := path.with_name(path.name + f".{n}" * bool(n))))
