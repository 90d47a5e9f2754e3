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
from solorun import lock, process, status, stop, supervisor
from solorun.claim import clear_stale
from solorun.errors import DirectoryProblem
from solorun.frozen import replace
from solorun.lock import DirectoryLock, Survivors
from solorun.owner import Foreign, ProcessId, encode_owner
from solorun.patience import StopPolicy
from solorun.process import RUN_ID_VARIABLE
from solorun.rundir import LABEL, OWNER
from solorun.runstate import Unreadable
from solorun.stop import StillRunning
from solorun.target import Pursuit, Target

from .stage import Spawner, a_dead_pid, owner_of, wait_until

RUN = f"20260101-000000-unseen-{os.getpid()}"


@pytest.fixture
def worker(spawn: Spawner) -> process.ProcessId:
    """A live process of a run that is over in the directory."""
    child = spawn.python("import time; time.sleep(600)", env={RUN_ID_VARIABLE: RUN})
    wait_until(lambda: process.carries(child.pid, RUN))
    found = process.identify(child.pid)
    assert found is not None
    return found


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, path: str | Path, number: int) -> None:
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


def test_no_run_starts_beside_a_daemon_that_was_forked_while_the_table_was_read(
    worker: process.ProcessId, spawn: Spawner, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = process.system.environment_value
    daemons = []

    def fork_and_end(pid: int, name: str) -> str:
        if pid == worker.pid and not daemons:
            child = spawn.python("import time; time.sleep(600)", env={RUN_ID_VARIABLE: RUN})
            wait_until(lambda: look(child.pid, name) == RUN)
            daemons.append(child.pid)
            process.send(worker, signal.SIGKILL)
            spawn.children[0].popen.wait(10)
        return str(look(pid, name))

    monkeypatch.setattr(process.system, "environment_value", fork_and_end)
    found = enter(results)
    assert isinstance(found, Survivors)
    assert [one.pid for one in found.processes] == daemons


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


UNREADABLE = (errno.ENFILE, errno.EMFILE, errno.EIO, errno.ESTALE)


@pytest.mark.parametrize("number", UNREADABLE)
def test_no_run_starts_in_another_hosts_directory_because_its_record_cannot_be_read_once(
    results: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    far = replace(process.here(), host="far", machine="far", boot="another")
    owner = owner_of(results, ProcessId(far, a_dead_pid(), 1), run_id=RUN)
    (results / OWNER).write_bytes(encode_owner(owner))
    (results / LABEL).write_text(f"{owner.process.pid}\n")  # a PID that is nobody's here
    with monkeypatch.context() as failing:
        refuse(failing, "open", OWNER, number)
        with pytest.raises(DirectoryProblem, match=f"{OWNER}: {os.strerror(number)}"):
            solorun.hold(results, settle_s=0).__enter__()
    assert isinstance(lock.enter(results), Foreign)


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("number", UNREADABLE)
def test_no_verb_says_anything_of_a_directory_whose_record_cannot_be_read(
    results: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(monkeypatch, "open", OWNER, number)
    assert status.gather(results, 0.0) == Unreadable(str(results), os.strerror(number))
    with pytest.raises(DirectoryProblem, match=os.strerror(number)):
        stop.stop(results, StopPolicy(0.2))
    with pytest.raises(OSError, match=os.strerror(number)):
        clear_stale(results, 0.0)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP])
def test_a_record_that_nobody_will_ever_read_leaves_it_to_the_label(
    results: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (results / LABEL).write_text(f"{a_dead_pid()}\n")
    refuse(monkeypatch, "open", OWNER, number)
    found = lock.enter(results)
    assert isinstance(found, DirectoryLock)
    assert found.took_over is not None
    found.close()


def test_a_run_ends_whole_where_its_record_cannot_be_read(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with solorun.hold(results, settle_s=0):
        refuse(monkeypatch, "open", OWNER, errno.EMFILE)
    assert not {LABEL, OWNER} & set(os.listdir(results))


@linux
@pytest.mark.parametrize("number", [errno.ENFILE, errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_who_cannot_be_looked_at_is_no_orphan_no_reader_and_without_no_lock(
    spawn: Spawner, results: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    code = """
import fcntl, sys, time
log = open(sys.argv[1], "w")
fcntl.flock(log, fcntl.LOCK_EX)
print("up", flush=True)
time.sleep(600)
"""
    child = spawn.python(code, results / "log")
    child.wait_for("up")
    facts = os.stat(results / "log")
    looks = [
        lambda: process.parents()[child.pid] == os.getpid(),
        lambda: [file.writes for file in process.files_open_below(child.pid, str(results))] == [True],
        lambda: [one.pid for one, _ in process.flock_sharers(facts.st_dev, facts.st_ino)] == [child.pid],
    ]
    assert all(look() for look in looks)
    opened = Path(f"/proc/{child.pid}/fd")
    fd = next(one.name for one in opened.iterdir() if one.readlink() == results / "log")
    for path in (f"/proc/{child.pid}/stat", f"/proc/{child.pid}/fdinfo/{fd}"):
        refuse(monkeypatch, "open", path, number)
    for look in looks:
        with pytest.raises(OSError, match=os.strerror(number)):
            look()


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


@pytest.fixture
def guarded(spawn: Spawner, results: Path) -> Target:
    """A run whose trainer is dead and whose supervisor has not let go yet."""
    deaf = spawn.python(
        "import signal, time\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(number, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\ntime.sleep(600)"
    )
    deaf.wait_for("deaf")
    guard = process.identify(deaf.pid)
    assert guard is not None
    owner = owner_of(results, ProcessId(process.here(), a_dead_pid(), 1), run_id=RUN, supervisor=guard)
    (results / OWNER).write_bytes(encode_owner(owner))
    return Target(RUN, owner, ())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.EACCES, errno.ENOENT])
def test_a_supervisor_has_not_let_go_of_a_directory_that_nobody_can_look_into(
    guarded: Target, results: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    told: list[str] = []

    def fail_from_now_on(line: str) -> None:
        told.append(line)
        refuse(monkeypatch, "open", results, number)

    found = stop._Stop(results, guarded, StopPolicy(0.2), fail_from_now_on, time.monotonic).run(time.sleep)
    assert isinstance(found, StillRunning), "which is exit status 5"
    assert found.pids
    assert told


@pytest.mark.parametrize("call", ["open", "stat"])
def test_a_record_that_cannot_be_read_is_not_one_that_was_taken_down(
    guarded: Target, results: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    pursuit = Pursuit(results, guarded, time.monotonic)
    assert guarded.owner is not None
    with monkeypatch.context() as failing:
        refuse(failing, "open", OWNER, errno.EIO)
        if call == "stat":
            refuse(failing, "stat", OWNER, errno.EIO)
        assert pursuit.rest() == [guarded.owner.supervisor]
    (results / OWNER).unlink()
    assert pursuit.rest() == []


def test_forked_workers_are_not_called_dead_while_nobody_can_look_for_their_lock(
    guarded: Target, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert guarded.owner is not None
    alone = Target(RUN, replace(guarded.owner, supervisor=None), ())
    pursuit = Pursuit(results, alone, time.monotonic)
    with monkeypatch.context() as failing:
        refuse(failing, "open", results, errno.EMFILE)
        assert pursuit.rest() == [guarded.owner.process]
    assert pursuit.rest() == []


def test_a_supervisor_lets_nothing_go_while_it_cannot_look(monkeypatch: pytest.MonkeyPatch) -> None:
    watching = object.__new__(supervisor._Supervisor)
    monkeypatch.setattr(watching, "_strays", list, raising=False)
    monkeypatch.setattr(process.system, "pids", blind)

    class Made:
        run_id = RUN

    watching.claim = Made()  # type: ignore[assignment]
    assert not watching._all_have_ended()
    assert not supervisor._is_nobody_left(RUN)
