"""Processes: who is alive, who is who, and signals that reach exactly the one that was meant."""

from __future__ import annotations

import errno
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from solorun import process
from solorun.owner import Activity, Alive, Gone, Here, ProcessId
from solorun.process import darwin, linux

from .stage import PYTHON, Spawner, a_dead_pid, as_nobody, wait_until

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"


def identity(pid: int) -> ProcessId:
    found = process.identify(pid)
    assert found is not None
    return found


def test_a_running_process_is_alive_and_has_a_birth(spawn: Spawner) -> None:
    child = spawn.python(SLEEPER)
    child.wait_for("up")
    seen = process.probe(child.pid)
    assert isinstance(seen, Alive)
    assert seen.started
    me = process.probe(os.getpid())
    assert isinstance(me, Alive)
    assert me.born is not None
    assert seen.born is not None
    assert seen.born >= me.born


def test_an_ended_process_is_gone() -> None:
    assert process.probe(a_dead_pid()) == Gone()


def test_a_zombie_is_dead() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        wait_until(lambda: process.probe(pid) == Gone())
        assert process.identify(pid) is None
    finally:
        os.waitpid(pid, 0)


def test_a_zombie_whose_other_threads_still_live_is_alive(spawn: Spawner) -> None:
    number = {"x86_64": 60, "aarch64": 93}.get(platform.machine())
    if number is None:
        pytest.skip("the number of exit(2) is not known here")
    code = f"""
        import ctypes, threading, time
        threading.Thread(target=time.sleep, args=(600,)).start()
        print("up", flush=True)
        ctypes.CDLL(None).syscall({number}, 0)  # ends this thread alone
    """
    child = spawn.python(code)
    wait_until(lambda: child.state() == "Z", what="the first thread's end")
    assert process.is_alive(identity(child.pid))
    child.signal(signal.SIGKILL)
    wait_until(lambda: process.probe(child.pid) == Gone())


def test_a_suspended_process_is_alive(spawn: Spawner) -> None:
    child = spawn.python(SLEEPER)
    child.wait_for("up")
    child.signal(signal.SIGSTOP)
    wait_until(lambda: child.state() == "T")
    assert process.is_alive(identity(child.pid))


def test_a_process_of_another_user_is_alive() -> None:
    mine = os.getpid()
    assert as_nobody(lambda: isinstance(process.probe(mine), Alive)) is True


def test_a_process_that_can_neither_be_read_nor_signalled_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "_stat", lambda _pid: None)  # as /proc with hidepid=2
    mine = os.getpid()
    assert as_nobody(lambda: isinstance(process.probe(mine), Alive)) is True
    assert linux.probe(a_dead_pid()) == Gone()


def test_another_users_process_is_not_signalled_but_refused() -> None:
    me = process.identify_self()
    answer = as_nobody(lambda: process.send(me, signal.SIGUSR1))
    assert answer.startswith("PermissionError")


def test_an_identity_is_the_same_however_often_it_is_asked(spawn: Spawner) -> None:
    child = spawn.python(SLEEPER)
    assert identity(child.pid) == identity(child.pid)
    assert process.is_alive(identity(child.pid))


def test_a_recycled_pid_is_not_the_process_that_was_meant(spawn: Spawner) -> None:
    child = spawn.python(SLEEPER)
    real = identity(child.pid)
    assert not process.is_alive(replace(real, started=real.started - 1))


def test_a_process_of_another_place_counts_as_alive_and_one_before_the_restart_as_dead() -> None:
    here = process.here()
    dead = a_dead_pid()
    assert process.is_alive(ProcessId(replace(here, boot="b", machine="m"), dead, 1))
    assert process.is_alive(ProcessId(replace(here, namespace="pid:[0]"), dead, 1))
    assert not process.is_alive(ProcessId(replace(here, boot="b"), os.getpid(), 1))


SAYS = """
import os, signal, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCONT):
    signal.signal(number, lambda n, _f: os.write(1, b"got %s\\n" % signal.Signals(n).name.encode()))
print("up", flush=True)
while True:
    time.sleep(0.05)
"""


def test_a_signal_reaches_the_right_identity(spawn: Spawner) -> None:
    child = spawn.python(SAYS)
    child.wait_for("up")
    assert process.send(identity(child.pid), signal.SIGUSR1)
    child.wait_for("got SIGUSR1")


def test_a_signal_is_not_sent_to_a_recycled_pid_another_boot_or_another_namespace(spawn: Spawner) -> None:
    child = spawn.python(SAYS)
    child.wait_for("up")
    real = identity(child.pid)
    assert not process.send(replace(real, started=real.started + 1), signal.SIGTERM)
    assert not process.send(replace(real, here=replace(real.here, boot="b")), signal.SIGTERM)
    assert not process.send(replace(real, here=replace(real.here, namespace="n")), signal.SIGTERM)
    assert process.send(real, signal.SIGUSR1)
    assert "SIGTERM" not in child.wait_for("got SIGUSR1")


def test_a_signal_to_the_dead_is_not_sent() -> None:
    assert not process.send(ProcessId(process.here(), a_dead_pid(), 1), signal.SIGTERM)


def test_a_suspended_process_hears_a_polite_signal(spawn: Spawner) -> None:
    child = spawn.python(SAYS)
    child.wait_for("up")
    child.signal(signal.SIGSTOP)
    wait_until(lambda: child.state() == "T")
    assert process.send(identity(child.pid), signal.SIGINT)
    child.wait_for("got SIGINT")
    child.wait_for("got SIGCONT")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_where_there_is_no_pidfd_the_identity_is_checked_and_the_signal_sent(
    spawn: Spawner, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_pid: int, _flags: int = 0) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    child = spawn.python(SAYS)
    child.wait_for("up")
    real = identity(child.pid)
    assert not process.send(replace(real, started=real.started + 1), signal.SIGTERM)
    assert process.send(real, signal.SIGUSR1)
    assert "SIGTERM" not in child.wait_for("got SIGUSR1")


ORPHAN_MAKER = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", '''
import os, time
os.closerange(3, 1000)
os.setsid()
print("closed everything", os.getpid(), flush=True)
time.sleep(600)
'''])
"""


def test_carriers_finds_a_process_that_closed_all_descriptors_and_lost_its_parent(spawn: Spawner) -> None:
    run_id = f"run-{spawn.mark}"
    parent = spawn.python(ORPHAN_MAKER, env={process.RUN_ID_VARIABLE: run_id})
    assert parent.wait() == 0
    said = wait_until(lambda: re.search(r"closed everything (\d+)\n", parent.text()))  # the words come one by one
    pid = int(said[1])
    assert [one.pid for one in process.carriers(run_id)] == [pid]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not process.carriers(run_id))


def test_carriers_takes_no_id_for_another_that_begins_with_it(spawn: Spawner) -> None:
    run_id = f"run-{spawn.mark}"
    child = spawn.python(
        SLEEPER, env={process.RUN_ID_VARIABLE: run_id + "0", "X": f"{process.RUN_ID_VARIABLE}={run_id}"}
    )
    child.wait_for("up")
    assert process.carriers(run_id) == []
    assert [one.pid for one in process.carriers(run_id + "0")] == [child.pid]


def test_descendants_are_the_live_tree_below_a_process(spawn: Spawner) -> None:
    inner = f"{PYTHON} -c 'import time; print(1, flush=True); time.sleep(600)'"
    child = spawn("sh", "-c", f'{inner} & sh -c "{inner}; :" & wait')
    wait_until(lambda: child.text().count("1") == 2)
    found = process.descendants(identity(child.pid))
    assert len(found) == 3
    assert {one.pid for one in spawn.descendants()} == {child.pid, *(one.pid for one in found)}
    assert [one for one in process.descendants(process.identify_self()) if one.pid == child.pid]
    child.signal(signal.SIGKILL)
    child.wait()
    dead = replace(process.identify_self(), pid=child.pid)
    assert process.descendants(dead) == []


def test_descendants_go_by_the_table_that_was_read_and_a_ring_in_it_is_no_trap() -> None:
    me = process.identify_self()
    assert process.descendants(me, {os.getppid(): me.pid, me.pid: os.getppid()}) == [identity(os.getppid())]


def test_a_process_that_waits_does_nothing_and_one_that_computes_or_wakes_does(spawn: Spawner) -> None:
    code = """
        import sys, threading, time
        lock = threading.Lock()
        lock.acquire()
        print("up", flush=True)
        {"wait": lock.acquire, "compute": lambda: [0 for _ in iter(int, 1)], "wake": lambda: [
            time.sleep(0.02) for _ in iter(int, 1)]}[sys.argv[1]]()
    """
    doing = {how: spawn.python(code, how) for how in ("wait", "compute", "wake")}
    for child in doing.values():
        child.wait_for("up")

    def seen(how: str) -> Activity:
        found = process.activity(doing[how].pid)
        assert found is not None
        return found

    def one_did_nothing_while_the_others_did() -> bool:
        before = {how: seen(how) for how in doing}
        wait_until(lambda: seen("compute").cpu_s > before["compute"].cpu_s + 0.1)
        wait_until(lambda: seen("wake").switches > before["wake"].switches + 3)
        return seen("wait") == before["wait"]

    wait_until(lambda: seen("wait").state == "S")
    wait_until(one_did_nothing_while_the_others_did)  # the first look may fall on its way into the wait


def test_the_guards_own_thread_does_not_count_as_activity(spawn: Spawner, tmp_path: Path) -> None:
    code = """
        import sys, threading, solorun
        with solorun.hold(sys.argv[1]):
            lock = threading.Lock()
            lock.acquire()
            print("up", flush=True)
            lock.acquire()
    """
    child = spawn.python(code, tmp_path)
    child.wait_for("up")

    def keeper() -> int:
        """Times that the keeper was woken; 0 while its thread has no name yet."""
        threads = [Path(f"/proc/{child.pid}/task/{one}") for one in os.listdir(f"/proc/{child.pid}/task")]
        own = [one for one in threads if (one / "comm").read_text().strip() == process.KEEPER_THREAD]
        return linux._switches((own[0] / "status").read_bytes()) if own else 0

    def nothing_was_done_while_it_woke() -> bool:
        before, woken = process.activity(child.pid), keeper()
        wait_until(lambda: keeper() > woken)
        return process.activity(child.pid) == before

    wait_until(keeper)
    wait_until(nothing_was_done_while_it_woke)  # at its first waking the trainer may be on its way to the lock
    assert process.background(0.5) == Activity("S", 0.0, 0)


def test_the_activity_of_the_dead_cannot_be_told_and_that_of_another_user_can() -> None:
    assert process.activity(a_dead_pid()) is None
    assert as_nobody(lambda: process.activity(1) is not None)


def test_a_group_is_signalled_with_all_its_members(spawn: Spawner) -> None:
    leader = spawn("sh", "-c", "sleep 600 & sleep 600 & echo up; wait", start_new_session=True)
    leader.wait_for("up")
    members = wait_until(lambda: len(found := spawn.descendants()) == 3 and found)
    assert process.send_group(identity(leader.pid), signal.SIGTERM)
    leader.wait()
    wait_until(lambda: not any(process.is_alive(one) for one in members))


def test_a_process_that_leads_no_group_or_is_recycled_has_no_group_to_signal(spawn: Spawner) -> None:
    child = spawn.python(SLEEPER)
    real = identity(child.pid)
    assert not process.send_group(real, signal.SIGTERM)
    leader = spawn.python(SLEEPER, start_new_session=True)
    leader.wait_for("up")
    real = identity(leader.pid)
    assert not process.send_group(replace(real, started=real.started + 1), signal.SIGTERM)
    assert leader.popen.poll() is None


def test_what_a_process_is_can_be_told(spawn: Spawner) -> None:
    child = spawn.python(SLEEPER, cwd="/")
    child.wait_for("up")
    assert process.argv(child.pid)[0] == sys.executable
    assert process.cwd(child.pid) == "/"
    assert process.resident_bytes(child.pid) > 1_000_000
    assert process.user_of(child.pid) == process.user_name(os.getuid())
    assert linux.parent(child.pid) == os.getpid()
    assert process.user_name(123_456_789) == "123456789"


def test_what_a_dead_process_was_cannot_be_told() -> None:
    dead = a_dead_pid()
    assert process.argv(dead) == ()
    assert process.cwd(dead) == ""
    assert process.resident_bytes(dead) == 0
    assert process.user_of(dead) == ""
    assert (linux.parent(dead), linux.group(dead)) == (0, 0)


def test_a_program_name_with_parentheses_and_spaces_is_read_right(spawn: Spawner) -> None:
    code = "import time; open('/proc/self/comm', 'w').write('a) R 1 (b'); print('up', flush=True); time.sleep(600)"
    child = spawn.python(code)
    child.wait_for("up")
    assert linux.parent(child.pid) == os.getpid()


def test_here_names_machine_boot_and_namespace() -> None:
    here = process.here()
    assert here.host
    assert here.machine.startswith(here.host)
    assert len(here.boot) == 36
    assert here.namespace.startswith("pid:[")


def test_signals_have_names() -> None:
    assert process.signal_name(2) == "SIGINT"
    assert process.signal_name(99) == "signal 99"


class FakeError(Exception):
    """The root of psutil's errors."""


class NoSuchProcess(FakeError):
    pass


class ZombieProcess(NoSuchProcess):
    pass


class AccessDenied(FakeError):
    pass


def psutil_that_says(
    status: Any = "sleeping", born: float = 1000.25, error: type[Exception] | Exception | None = None, **more: Any
) -> Any:
    """A stand-in for the psutil module on a Mac."""

    def answer(value: Any) -> Callable[[], Any]:
        def say() -> Any:
            if error is not None:
                raise error
            return value

        return say

    class Oneshot:
        def __enter__(self) -> None:
            return None

        def __exit__(self, *_: object) -> None:
            return None

    answers = {"status": status, "create_time": born, "oneshot": Oneshot(), **more}
    asked = SimpleNamespace(**{name: answer(value) for name, value in answers.items()})
    asked.oneshot = Oneshot
    return SimpleNamespace(
        Process=lambda _pid: asked,
        Error=FakeError, NoSuchProcess=NoSuchProcess, ZombieProcess=ZombieProcess, AccessDenied=AccessDenied,
        STATUS_ZOMBIE="zombie", STATUS_DEAD="dead", STATUS_RUNNING="running", STATUS_STOPPED="stopped",
        STATUS_DISK_SLEEP="disk-sleep", pids=lambda: [1, 2],
    )  # fmt: skip


def kernel(_pid: int) -> int:
    """A stand-in for the kernel's own start time, which no clock moves."""
    return 1_000_250_000


@pytest.mark.parametrize(
    ("status", "letter"),
    [("running", "R"), ("sleeping", "S"), ("idle", "S"), ("stopped", "T"), ("disk-sleep", "D"), ("waking", "S")],
)
def test_darwin_tells_the_state_by_its_letter(status: str, letter: str) -> None:
    assert darwin.probe(7, psutil_that_says(status), kernel) == Alive(1_000_250_000, 1000.25, letter)


@pytest.mark.parametrize("status", ["zombie", "dead"])
def test_darwin_takes_a_zombie_by_status_for_dead(status: str) -> None:
    assert darwin.probe(7, psutil_that_says(status)) == Gone()


@pytest.mark.parametrize("error", [NoSuchProcess, ZombieProcess])
def test_darwin_takes_no_such_process_and_zombies_for_dead(error: type[Exception]) -> None:
    assert darwin.probe(7, psutil_that_says(error=error)) == Gone()


@pytest.mark.parametrize("error", [AccessDenied, PermissionError, RuntimeError, SystemError])
def test_darwin_takes_a_denied_process_for_alive(error: type[Exception]) -> None:
    assert darwin.probe(7, psutil_that_says(error=error)) == Alive(None, None, "?")


def test_darwin_identifies_boot_and_machine() -> None:
    answers = {"kern.bootsessionuuid": "B-UUID", "kern.boottime": "{ sec = 1 }"}
    here = darwin.here(lambda name: answers[name], lambda: "HW")
    assert here == Here(here.host, "HW", "B-UUID", "")


def test_darwin_takes_no_boot_time_for_a_boot_since_that_moves_with_the_clock() -> None:
    answers = {"kern.bootsessionuuid": "", "kern.boottime": "{ sec = 1 }"}
    here = darwin.here(lambda name: answers[name], lambda: "")
    assert here == Here(here.host, here.host, "", "")


def test_darwin_tells_where_a_directory_is_but_not_where_a_deleted_one_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(darwin.fcntl, "fcntl", lambda *_question: os.fsencode(place).ljust(1024, b"\0"))
    fd = os.open(place, os.O_RDONLY)
    assert darwin.path_of_descriptor(fd) == str(place)
    place.rmdir()
    assert darwin.path_of_descriptor(fd) is None
    place.mkdir()
    (place / "other").mkdir()
    held = os.open(place / "other", os.O_RDONLY)
    assert darwin.path_of_descriptor(held) is None  # the kernel names a place where another directory stands
    os.close(held)
    os.close(fd)


def test_darwin_reads_environment_command_and_memory() -> None:
    ps = psutil_that_says(
        environ={"SOLORUN_RUN_ID": "r1"}, cmdline=["python3", "t.py"], cwd="/x", ppid=3,
        uids=SimpleNamespace(real=501), memory_info=SimpleNamespace(rss=4096),
    )  # fmt: skip
    assert darwin.environment_value(7, "SOLORUN_RUN_ID", ps) == "r1"
    assert darwin.environment_value(7, "OTHER", ps) == ""
    assert darwin.argv(7, ps) == ("python3", "t.py")
    assert (darwin.cwd(7, ps), darwin.parent(7, ps), darwin.uid(7, ps)) == ("/x", 3, 501)
    assert (darwin.resident_bytes(7, ps), darwin.pids(ps)) == (4096, [1, 2])


@pytest.mark.parametrize("error", [AccessDenied, PermissionError, RuntimeError, SystemError])
def test_darwin_says_nothing_of_a_process_that_may_not_be_looked_at(error: type[Exception]) -> None:
    ps = psutil_that_says(
        error=error, environ={}, cmdline=[], cwd="", ppid=0, uids=SimpleNamespace(real=0), memory_info=None
    )
    assert darwin.environment_value(7, "SOLORUN_RUN_ID", ps) == ""
    assert (darwin.argv(7, ps), darwin.cwd(7, ps), darwin.parent(7, ps)) == ((), "", 0)
    assert (darwin.uid(7, ps), darwin.resident_bytes(7, ps)) == (None, 0)
    assert darwin.activity(7, "keeper", ps) is None
    assert not darwin.has_open(7, 1, 2, ps)


@pytest.mark.parametrize(
    ("error", "number"),
    [(OSError(number, os.strerror(number)), number) for number in (errno.ENFILE, errno.EMFILE, errno.ENOMEM, errno.EIO)]
    + [(MemoryError(), errno.ENOMEM)],
)
def test_darwin_says_when_it_could_not_look_at_what_proves_that_a_run_lives(error: Exception, number: int) -> None:
    ps = psutil_that_says(error=error, environ={}, open_files=[], cmdline=[], cwd="", ppid=0, uids=None)
    for look in (lambda: darwin.environment_value(7, "ID", ps), lambda: darwin.files_open_below(7, "/", ps)):
        with pytest.raises(OSError, match=os.strerror(number)) as told:
            look()
        assert told.value.errno == number
    assert isinstance(darwin.probe(7, ps), Alive)
    assert (darwin.argv(7, ps), darwin.cwd(7, ps), darwin.parent(7, ps), darwin.uid(7, ps)) == ((), "", 0, None)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESRCH, errno.EPERM, errno.EINVAL, errno.ENOTSUP])
def test_darwin_takes_what_the_kernel_never_tells_for_hidden(number: int) -> None:
    ps = psutil_that_says(error=OSError(number, os.strerror(number)), environ={}, open_files=[])
    assert darwin.environment_value(7, "SOLORUN_RUN_ID", ps) == ""
    assert darwin.files_open_below(7, "/", ps) == []


@pytest.mark.parametrize("error", [OSError(errno.ENFILE, "full"), MemoryError(), RuntimeError("no PIDs found")])
def test_darwin_says_when_the_table_cannot_be_read(error: Exception) -> None:
    def refused() -> list[int]:
        raise error

    ps = psutil_that_says()
    ps.pids = refused
    for look in (darwin.pids, darwin.parents):
        with pytest.raises(OSError, match=r"full|allocate|no PIDs"):
            look(ps)
    with pytest.raises(OSError, match=r"full|allocate|no PIDs"):
        darwin.table(ps, kernel, lambda: "")


def test_darwin_tells_activity_and_the_tree() -> None:
    ps = psutil_that_says(
        "stopped", cpu_times=SimpleNamespace(user=1.5, system=0.5),
        num_ctx_switches=SimpleNamespace(voluntary=7, involuntary=2), ppid=3,
    )  # fmt: skip
    assert darwin.activity(7, "keeper", ps) == Activity("T", 2.0, 9)
    assert darwin.parents(ps) == {1: 3, 2: 3}
    for error, told in ((AccessDenied, None), (NoSuchProcess, None), (ZombieProcess, Activity("Z", 0.0, 0))):
        ps = psutil_that_says(error=error, cpu_times=None, num_ctx_switches=None)
        assert darwin.activity(7, "keeper", ps) == told


def test_darwin_allows_for_the_keepers_waking() -> None:
    assert darwin.background(0.5).switches >= 4
    assert darwin.background(10).cpu_s > darwin.background(1).cpu_s
    assert darwin.background(0.5).cpu_s < 0.01  # a loop that computes still shows


def test_darwin_names_the_calling_thread() -> None:
    named: list[bytes] = []
    darwin.name_thread("keeper", SimpleNamespace(pthread_setname_np=named.append))
    darwin.name_thread("keeper", SimpleNamespace())  # a C library without the call
    assert named == [b"keeper"]


def test_darwin_signals_only_the_identity_that_was_meant(spawn: Spawner) -> None:
    child = spawn.python(SAYS)
    child.wait_for("up")
    ps = psutil_that_says()
    assert not darwin.send(child.pid, 999, signal.SIGTERM, ps, kernel)
    assert not darwin.send(child.pid, 1_000_250_000, signal.SIGTERM, psutil_that_says("zombie"), kernel)
    assert darwin.send(child.pid, 1_000_250_000, signal.SIGUSR1, ps, kernel)
    assert "SIGTERM" not in child.wait_for("got SIGUSR1")
    assert not darwin.send(a_dead_pid(), 1_000_250_000, signal.SIGTERM, ps, kernel)


def test_darwin_asks_the_real_psutil_by_the_same_names() -> None:
    psutil = pytest.importorskip("psutil")
    assert isinstance(darwin.probe(os.getpid(), psutil, kernel), Alive)
    assert darwin.probe(a_dead_pid(), psutil, kernel) == Gone()
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    try:
        wait_until(lambda: darwin.probe(child.pid, psutil, kernel) == Gone())
    finally:
        child.wait()
