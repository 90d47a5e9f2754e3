"""Watch a live run from any login: its output as it comes, until it ends or the watcher leaves.

Whatever happens to the watcher, the run goes on: it only reads the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from solorun import process, status
from solorun.errors import DirectoryProblem, SolorunError
from solorun.frozen import dataclass
from solorun.label import look
from solorun.launch import TmuxSession
from solorun.logs import follow, last_lines
from solorun.owner import Foreign, Held, Owner
from solorun.record import RunRecord, read_events, read_record
from solorun.refusal import refusal
from solorun.rundir import RunDir
from solorun.runstate import Unreadable, how_ended
from solorun.wording import ago, shell_word

_LOOKS_WITHOUT_IT = 3


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A run that can be watched.

    Args:
        directory: its results directory.
        run_id: empty for an old-style trainer.
        pid: of the training process.
        owner: who holds the directory.
        session: the tmux session that it lives in, if it does.
    """

    directory: Path
    run_id: str
    pid: int
    owner: Owner
    session: TmuxSession | None


def find(directory: Path, now: float) -> LiveRun:
    """The live run of a directory.

    Raises:
        SolorunError: none is live; tells how the last one ended.
        Refused: it lives on another host, where its log may be watched too, but not its end.
        DirectoryProblem: the directory cannot be read.
    """
    evidence = status.gather(directory, now, carriers=lambda _run: (), heirs=lambda _fd: ())
    if isinstance(evidence, Unreadable):
        what = f"cannot look into {str(directory)!r}: {evidence.reason}"
        raise DirectoryProblem(what, f"look at it: ls -ld {shell_word(directory)}")
    if isinstance(evidence.verdict, Foreign):
        raise refusal(directory, evidence.verdict, now)
    owner = evidence.owner
    if not isinstance(evidence.verdict, Held) or owner is None:
        raise SolorunError(
            f"no run is live in {str(directory)!r}{_last(evidence.record, now)}",
            f"its log: solorun logs {shell_word(directory)}",
        )
    return LiveRun(directory, owner.run_id, owner.process.pid, owner, session_of(directory, owner.run_id))


def _last(record: RunRecord | None, now: float) -> str:
    if record is None:
        return ""
    when = f" {ago(now - record.ended)} ago" if record.ended else ""
    return f"; the last one: {how_ended(record)}{when}"


def session_of(directory: Path, run_id: str) -> TmuxSession | None:
    """The tmux session that a run was started in, as its journal tells; None when there was none."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        told = [event for event in read_events(fd) if event["event"] == "in tmux" and event.get("run_id") == run_id]
    finally:
        os.close(fd)
    return TmuxSession(str(told[-1].get("session")), str(told[-1].get("socket"))) if told else None


def watch(run: LiveRun, lines: int) -> Iterator[str]:
    """The last lines of the log, then text as it comes, until the run is over.

    Raises:
        OSError: the log cannot be read.
    """
    log = RunDir(run.directory).log
    end = log.stat().st_size if log.exists() else 0
    if end:
        yield "".join(line + "\n" for line in last_lines(log, lines, end))
    yield from follow(log, until=_ended(run), start=end)


def _ended(run: LiveRun) -> Callable[[], bool]:
    """Asked whenever nothing new has come. More than once in a row: the last line is written while letting go."""
    without = 0

    def ended() -> bool:
        nonlocal without
        without = 0 if is_live(run) or _is_letting_go(run) else without + 1
        return without >= _LOOKS_WITHOUT_IT

    return ended


def is_live(run: LiveRun) -> bool:
    """Whether the directory is still held by this run."""
    try:
        verdict = look(run.directory)
    except OSError:
        return process.is_alive(run.owner.process)
    if not isinstance(verdict, Held):
        return False
    return verdict.owner.run_id == run.run_id if verdict.owner else verdict.pid == run.pid


def _is_letting_go(run: LiveRun) -> bool:
    """Whether its label is down and its guard still has the kernel's lock, as it may for long on a busy machine."""
    try:
        if isinstance(look(run.directory), Held):  # the next run's already
            return False
        facts = os.stat(run.directory)
    except OSError:
        return False
    guards = (run.owner.supervisor, run.owner.process)
    return any(
        one is not None and process.is_alive(one) and process.system.has_flock(one.pid, facts.st_dev, facts.st_ino)
        for one in guards
    )


def end_of(run: LiveRun) -> RunRecord | None:
    """How the run ended, as its record tells; None when nothing was written down."""
    try:
        fd = os.open(run.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        record = read_record(fd)
    finally:
        os.close(fd)
    return record if record is not None and record.run_id == run.run_id else None
