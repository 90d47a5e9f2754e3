"""Victims: a scene is played by a forked process of its own, struck once by a fault, and judged by what comes after."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kssm.errors import KssmError
from solorun import SolorunError, explain
from solorun.rundir import LOG
from tests.faults.shim import FAIL_ON, KILLS, REMOVE, Call, Fault, Shim

PATIENCE_S = 120.0
TRACEBACK = 99
"""Exit code of a victim that let an exception through that no command line would have put into words."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a scene is played.

    Args:
        place: the scope of the faults: `results` and `cache` lie in it.
        shim: for what a scene does beside its sequence.
        notes: file that `tell` appends to; outside of the scope.
    """

    place: Path
    shim: Shim
    notes: Path

    @property
    def results(self) -> Path:
        """The results directory."""
        return self.place / "results"

    @property
    def cache(self) -> Path:
        """Where token files lie."""
        return self.place / "cache"

    @property
    def said(self) -> Path:
        """Where what is started beside the victim may write."""
        return self.notes.with_name("beside")

    def tell(self, word: str) -> None:
        """Something that the victim has reported to its world."""
        fd = os.open(self.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, f"{word}\n".encode())
        os.close(fd)

    def told(self) -> list[str]:
        """All of it."""
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a victim.

    Args:
        fault: what was done to it.
        struck: the first call that was struck; None when none was reached.
        code: its exit status; negative for a signal.
        said: standard output and error.
        left_open: files of the scope that it still had open after the sequence.
        before: what lay in the scope before, by relative path.
        log: of the run.
    """

    fault: Fault
    struck: Call | None
    code: int
    said: str
    left_open: tuple[str, ...]
    before: dict[str, bytes]
    log: str

    @property
    def was_killed(self) -> bool:
        """Whether the fault was a kill."""
        return self.fault.what in KILLS

    @property
    def was_asked_to_stop(self) -> bool:
        """Whether the guard itself ended the run, and said so in the log."""
        return "CONFLICT" in self.log

    @property
    def removals_failed(self) -> bool:
        """Whether something may be left because taking it away was what failed."""
        return self.fault.what == FAIL_ON or (self.struck is not None and self.struck.kind == REMOVE)


@dataclass(frozen=True, slots=True)
class Scene:
    """A sequence of calls, with what comes before and after.

    Args:
        name: for people.
        prepare: makes the directory as it is before.
        act: the sequence; its result is the exit code.
        judge: looks at what is left, starts anew, and yields what is wrong.
        codes: exit codes that a failing disk may lead to.
        flags: the kind of disk, and whose calls count.
        registry: whether the user's registry lies on the disk that fails, too.
        most: of a scene that takes seconds, at most so many cases are taken; 0 for all.
    """

    name: str
    prepare: Callable[[Stage], None]
    act: Callable[[Stage], int]
    judge: Callable[[Stage, Outcome], Iterator[str]]
    codes: frozenset[int] = frozenset((0, 1, 7))
    flags: int = 0
    registry: bool = False
    most: int = 0


def play(scene: Scene, fault: Fault, shim: Shim, room: Path) -> tuple[list[Call], list[str]]:
    """Play a scene once.

    Args:
        scene: which.
        fault: what happens in it.
        shim: of this process.
        room: an empty directory, emptied again.

    Returns:
        The calls that counted, and what was wrong.
    """
    stage = Stage(room / "disk", shim, room / "notes")
    stage.place.mkdir()
    os.environ["SOLORUN_STATE"] = str((stage.place if scene.registry else room) / "state")
    os.environ["KSSM_CACHE"] = str(stage.cache)
    apart(lambda: scene.prepare(stage), room / "prepared")
    before = contents(stage.place)
    shim.clear()

    def act() -> int:
        open_before = _open_below(stage.results)
        shim.arm(fault, scene.flags, stage.place)
        try:
            return scene.act(stage)
        finally:
            shim.arm(Fault(0, 0), 0, stage.place)
            for path in _open_below(stage.results) - open_before:
                os.write(1, f"left open: {path}\n".encode())

    code = apart(act, room / "said")
    calls = shim.calls()
    said = (room / "said").read_text(errors="replace").splitlines()
    left_open = tuple(line.split(": ", 1)[1] for line in said if line.startswith("left open: "))
    spoken = "\n".join(line for line in said if not line.startswith("left open: "))
    log = (stage.results / LOG).read_text(errors="replace") if (stage.results / LOG).is_file() else ""
    struck = next((call for call in calls if call.struck), None)
    outcome = Outcome(fault, struck, code, spoken, left_open, before, log)
    wrong = [*_misbehaviour(scene, outcome), *scene.judge(stage, outcome)]
    for path in room.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return calls, wrong


def _misbehaviour(scene: Scene, outcome: Outcome) -> Iterator[str]:
    """What is wrong with how the victim itself ended."""
    if outcome.was_killed and outcome.struck is not None and outcome.code in (-signal.SIGKILL, *scene.codes):
        return
    if "Traceback" in outcome.said or "Exception" in outcome.said:
        yield f"a traceback: {outcome.said.splitlines()[-1]}"
    elif outcome.code not in scene.codes and not (outcome.was_asked_to_stop and outcome.code == 128 + signal.SIGINT):
        yield f"exit status {outcome.code}: {outcome.said}"
    elif outcome.code and "next: " not in outcome.said and not outcome.was_asked_to_stop:
        yield f"no next step is told: {outcome.said}"
    elif outcome.left_open:
        yield f"left open: {', '.join(outcome.left_open)}"


def apart(do: Callable[[], int | None], said: Path) -> int:
    """Do something in a forked process; its exit status, negative for a signal. What it lets through is in `said`."""
    pid = os.fork()
    if pid == 0:
        code = TRACEBACK
        try:
            os.setsid()
            fd = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            code = _worded(do)
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -1000
        time.sleep(0.0005)


def _worded(do: Callable[[], int | None]) -> int:
    """As a command line puts errors into words."""
    try:
        return do() or 0
    except SolorunError as error:
        print(explain(error), file=sys.stderr)
        return error.exit_code
    except KssmError as error:
        print(f"{error.what}\n  next: {error.next_step}" if error.next_step else error.what, file=sys.stderr)
        return error.exit_code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return TRACEBACK


def contents(place: Path) -> dict[str, bytes]:
    """Every plain file below a directory."""
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def _open_below(place: Path) -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{name}")
            if path == str(place) or path.startswith(f"{place}/"):
                found.add(path[len(str(place.parent)) :])
    return found
