"""The process table cannot be read for a moment: nobody is dead because nobody could look."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import solorun
from solorun import lock, process, supervisor
from solorun.errors import DirectoryProblem
from solorun.lock import DirectoryLock, Survivors
from solorun.process import RUN_ID_VARIABLE
from solorun.target import Pursuit, Target

from .stage import Spawner, wait_until

RUN = f"20260101-000000-unseen-{os.getpid()}"


@pytest.fixture
def worker(spawn: Spawner) -> process.ProcessId:
    """A live process of a run that is over in the directory."""
    child = spawn.python("import time; time.sleep(600)", env={RUN_ID_VARIABLE: RUN})
    wait_until(lambda: process.carries(child.pid, RUN))
    found = process.identify(child.pid)
    assert found is not None
    return found


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, path: str, number: int) -> None:
    """Let a system call fail for one path."""
    real: Callable[..., Any] = getattr(os, name)

    def refused(asked: Any, *words: Any, **named: Any) -> Any:
        if asked == path:
            raise OSError(number, os.strerror(number), asked)
        return real(asked, *words, **named)

    monkeypatch.setattr(os, name, refused)


def enter(results: Path) -> DirectoryLock | lock.Refusal:
    return lock.enter(results, last_run=lambda _fd: RUN, settle_s=0)


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
@pytest.mark.parametrize("number", [errno.ENFILE, errno.EMFILE, errno.ENOMEM, errno.EIO])
@pytest.mark.parametrize(("call", "path"), [("listdir", "/proc"), ("open", "/proc/{pid}/environ")])
def test_no_run_starts_beside_a_live_worker_when_the_table_cannot_be_read(
    worker: process.ProcessId, results: Path, monkeypatch: pytest.MonkeyPatch, call: str, path: str, number: int
) -> None:
    with monkeypatch.context() as failing:
        refuse(failing, call, path.format(pid=worker.pid), number)
        with pytest.raises(OSError, match=os.strerror(number)):
            enter(results)
    assert enter(results) == Survivors(RUN, (worker,))  # and the lock was let go


@linux
def test_a_worker_whose_birth_cannot_be_told_is_in_the_way_too(
    worker: process.ProcessId, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "open", f"/proc/{worker.pid}/stat", errno.ENFILE)
    found = enter(results)
    assert isinstance(found, Survivors)
    assert [one.pid for one in found.processes] == [worker.pid]


@linux
@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM])
def test_a_process_that_is_over_or_hidden_is_in_nobodys_way(
    worker: process.ProcessId, results: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(monkeypatch, "open", f"/proc/{worker.pid}/environ", number)
    found = enter(results)
    assert isinstance(found, DirectoryLock)
    found.close()


@linux
def test_a_hold_that_cannot_look_says_so_in_one_line(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with solorun.hold(results, settle_s=0):
        pass
    with monkeypatch.context() as failing:
        refuse(failing, "listdir", "/proc", errno.ENFILE)
        with pytest.raises(DirectoryProblem, match=os.strerror(errno.ENFILE)) as told:
            solorun.hold(results, settle_s=0).__enter__()
    assert "too many open files on this machine" in told.value.next_step
    with solorun.hold(results, settle_s=0):  # nothing is left of the refusal
        pass


def blind() -> list[int]:
    raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))


def test_a_stop_calls_nobody_ended_whom_it_could_not_look_for(
    worker: process.ProcessId, spawn: Spawner, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pursuit = Pursuit(results, Target(RUN, None, (worker,)), time.monotonic)
    process.send(worker, signal.SIGKILL)
    spawn.children[0].popen.wait(10)
    with monkeypatch.context() as failing:
        failing.setattr(process.system, "pids", blind)
        assert pursuit.living() == [worker]
    assert pursuit.living() == []


def test_a_supervisor_lets_nothing_go_while_it_cannot_look(monkeypatch: pytest.MonkeyPatch) -> None:
    watching = object.__new__(supervisor._Supervisor)
    monkeypatch.setattr(watching, "_strays", list, raising=False)
    monkeypatch.setattr(process.system, "pids", blind)

    class Made:
        run_id = RUN

    watching.claim = Made()  # type: ignore[assignment]
    assert not watching._all_have_ended()
    assert not supervisor._is_nobody_left(RUN)
