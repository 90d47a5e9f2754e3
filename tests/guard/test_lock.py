"""The lock of a results directory: take, publish, settle, put back, release; and all that can stand in its way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from solorun import label, lock, process, rundir
from solorun.lock import Busy, DirectoryLock, Survivors, enter
from solorun.owner import Foreign, Held, Owner, Stale, Unknown, decode_owner, encode_owner

from .stage import DEADLINE_S, Spawner, a_dead_pid, as_nobody, names, owner_of, wait_until

TAKE = """
    import os, sys, time
    from solorun import lock, process
    from solorun.owner import Owner
    path = sys.argv[1]
    taken = lock.enter(path, settle_s=0)
    if isinstance(taken, lock.DirectoryLock):
        me = process.identify_self()
        owner = Owner("run-1", me, None, True, "ada", ("t",), "/", time.time(), path, taken.inode)
        assert taken.publish(owner) is None
        print("holding", flush=True)
        sys.stdin.read()
        taken.release()
    print(type(taken).__name__, flush=True)
"""


def taken(path: Path, **options: Any) -> DirectoryLock:
    found = enter(path, **{"settle_s": 0, "carriers": lambda _run: [], **options})
    assert isinstance(found, DirectoryLock), found
    return found


@pytest.fixture
def held(results: Path) -> Iterator[DirectoryLock]:
    """A lock that this process holds and has published."""
    found = taken(results)
    assert found.publish(mine(found)) is None
    yield found
    found.release()


def mine(found: DirectoryLock) -> Owner:
    return owner_of(Path(found.path), process.identify_self())


def test_a_free_directory_is_taken_published_and_released(results: Path) -> None:
    found = taken(results)
    assert found.took_over is None
    assert found.publish(mine(found)) is None
    assert (results / "training.lock").read_bytes() == b"%d\n" % os.getpid()
    record = decode_owner((results / "training.owner.json").read_bytes())
    assert record.process == process.identify_self()
    assert record.directory_inode == results.stat().st_ino
    assert names(results) == {"training.lock", "training.owner.json"}
    found.release()
    assert names(results) == set()


def test_a_held_directory_is_busy(held: DirectoryLock) -> None:
    assert enter(held.path) == Busy()


def test_a_released_directory_is_free_again(results: Path) -> None:
    taken(results).release()
    taken(results).release()


def test_releasing_twice_is_releasing_once(results: Path) -> None:
    first = taken(results)
    first.release()
    second = taken(results)
    second.publish(mine(second))
    first.release()
    assert enter(results) == Busy()
    assert "training.lock" in names(results)
    second.release()


def test_the_farewell_is_said_while_still_alone(held: DirectoryLock, results: Path) -> None:
    seen: list[object] = []
    held.release(lambda: seen.extend((enter(results), names(results))))
    assert seen == [Busy(), set()]
    taken(results).release()


def test_the_lock_is_let_go_even_when_the_farewell_fails(held: DirectoryLock, results: Path) -> None:
    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        held.release(fail)
    taken(results).release()


def test_after_the_holders_sigkill_the_next_start_takes_over_with_no_hand(spawn: Spawner, results: Path) -> None:
    child = spawn.python(TAKE, results, stdin=subprocess.PIPE)
    child.wait_for("holding")
    assert enter(results) == Busy()
    child.signal(signal.SIGKILL)
    child.wait()
    assert names(results) == {"training.lock", "training.owner.json"}
    found = taken(results)
    assert found.took_over is not None
    assert found.took_over.proof == f"PID {child.pid} is dead"
    assert names(results) == set()
    found.release()


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\n", b"0", b"-1", b"9999999999", b"12\n34\n", b"12\0\0", b"\xff\xfe\xfd", b"hello\n", b"x" * 64,
        b"x" * 1000, b"1\n" * 500, b"\0" * 100_000,
    ],
    ids=["empty", "newline", "zero", "negative", "huge", "two lines", "NUL", "not UTF-8", "word", "64 bytes",
         "1000 bytes", "many lines", "100 kB of NUL"],
)  # fmt: skip
def test_a_label_that_names_no_process_is_cleared(results: Path, text: bytes) -> None:
    (results / "training.lock").write_bytes(text)
    began = time.monotonic()
    found = taken(results)
    assert time.monotonic() - began < DEADLINE_S
    assert isinstance(found.took_over, Stale)
    assert names(results) == set()
    found.release()


def test_a_label_with_a_dead_pid_is_cleared(results: Path) -> None:
    dead = a_dead_pid()
    (results / "training.lock").write_text(f"{dead}\n")
    found = taken(results)
    assert found.took_over is not None
    assert found.took_over.proof == f"PID {dead} is dead"
    found.release()


def test_a_label_with_a_live_pid_is_respected(results: Path) -> None:
    (results / "training.lock").write_text(f"{os.getpid()}\n")
    assert enter(results) == Held(os.getpid(), None, f"PID {os.getpid()} is alive")
    assert (results / "training.lock").read_text() == f"{os.getpid()}\n"


def test_a_zombies_label_is_cleared(results: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        wait_until(lambda: process.identify(pid) is None)
        (results / "training.lock").write_text(f"{pid}\n")
        taken(results).release()
    finally:
        os.waitpid(pid, 0)


def test_a_label_older_than_the_process_that_has_its_pid_now_is_cleared(results: Path) -> None:
    path = results / "training.lock"
    path.write_text(f"{os.getpid()}\n")
    os.utime(path, (time.time() - 86_400, time.time() - 86_400))
    found = taken(results)
    assert found.took_over is not None
    assert "born" in found.took_over.proof
    found.release()


def test_another_hosts_record_is_never_cleared(results: Path) -> None:
    me = process.identify_self()
    there = replace(me, here=replace(me.here, boot="b", machine="m", host="far"))
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, there)))
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    before = names(results)
    assert isinstance(enter(results), Foreign)
    assert names(results) == before


def test_a_dead_strangers_label_does_not_hide_the_live_owner_of_the_record(results: Path) -> None:
    me = process.identify_self()
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, me)))
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    found = enter(results)
    assert isinstance(found, Held)
    assert found.pid == me.pid


def test_a_dead_run_record_beside_a_dead_strangers_label_is_cleared_with_it(results: Path) -> None:
    dead = replace(process.identify_self(), pid=a_dead_pid())
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, dead)))
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    taken(results).release()
    assert names(results) == set()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_torn_record_tells_nothing_and_the_label_decides(results: Path, damage: bytes) -> None:
    (results / "training.owner.json").write_bytes(damage)
    (results / "training.lock").write_text(f"{os.getpid()}\n")
    assert isinstance(enter(results), Held)
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    taken(results).release()


# What may stand in the label's place that is no file.


def test_a_dangling_link_is_put_aside(results: Path) -> None:
    (results / "training.lock").symlink_to(results / "nothing")
    taken(results).release()
    assert [name.startswith("training.lock.not-a-label-") for name in names(results)] == [True]


def test_a_link_to_a_file_that_names_a_live_process_is_respected(results: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(f"{os.getpid()}\n")
    (results / "training.lock").symlink_to(tmp_path / "elsewhere")
    found = enter(results)
    assert isinstance(found, Unknown)
    assert f"live PID {os.getpid()}" in found.reason
    assert (results / "training.lock").is_symlink()


def test_a_link_to_a_file_that_names_a_dead_process_is_put_aside_and_the_file_kept(
    results: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_text(f"{a_dead_pid()}\n")
    (results / "training.lock").symlink_to(tmp_path / "elsewhere")
    taken(results).release()
    assert (tmp_path / "elsewhere").exists()


def test_a_link_to_itself_is_put_aside(results: Path) -> None:
    (results / "training.lock").symlink_to("training.lock")
    taken(results).release()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["FIFO", "directory"])
def test_a_fifo_or_a_directory_does_not_block_and_is_put_aside(results: Path, make: Callable[[Path], None]) -> None:
    make(results / "training.lock")
    kind = stat.S_IFMT((results / "training.lock").stat().st_mode)
    began = time.monotonic()
    found = taken(results)
    assert time.monotonic() - began < DEADLINE_S
    found.publish(mine(found))
    found.release()
    (kept,) = results.iterdir()
    assert stat.S_IFMT(kept.stat().st_mode) == kind


def test_a_live_label_that_takes_the_place_of_a_link_in_the_meantime_is_put_back(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (results / "training.lock").symlink_to("nothing")
    exchange_before_rename(monkeypatch, results, f"{os.getpid()}\n")
    assert isinstance(enter(results), Held)
    assert (results / "training.lock").read_text() == f"{os.getpid()}\n"
    assert names(results) == {"training.lock"}


def test_a_record_that_is_a_directory_is_an_error_and_leaves_nothing(results: Path) -> None:
    (results / "training.owner.json").mkdir()
    found = taken(results)
    with pytest.raises(OSError, match=r"directory|exists"):
        found.publish(mine(found))
    assert names(results) == {"training.owner.json"}
    found.release()


# An old-style trainer between creating and writing, and other races.


def test_an_empty_label_that_is_filled_in_within_a_moment_is_respected(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label, "EMPTY_GRACE_S", DEADLINE_S)  # the writer's thread may get its turn late
    path = results / "training.lock"
    path.touch()
    writer = threading.Timer(0.1, lambda: path.write_text(f"{os.getpid()}\n"))
    writer.start()
    try:
        assert isinstance(enter(results), Held)
    finally:
        writer.join()
    assert path.read_text() == f"{os.getpid()}\n"


def exchange_before_rename(monkeypatch: pytest.MonkeyPatch, results: Path, text: str) -> None:
    """Put another label up at the very moment in which the judged one is taken away."""
    real = os.rename
    pending = [text]

    def rename(source: Any, target: Any, **where: Any) -> None:
        if source == "training.lock" and pending:
            (results / "theirs").write_text(pending.pop())
            real(results / "theirs", results / "training.lock")
        real(source, target, **where)

    monkeypatch.setattr(os, "rename", rename)


def test_a_label_exchanged_between_judging_and_taking_away_is_put_back(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    exchange_before_rename(monkeypatch, results, f"{os.getpid()}\n")
    assert isinstance(enter(results), Held)
    assert (results / "training.lock").read_text() == f"{os.getpid()}\n"
    assert names(results) == {"training.lock"}


def test_a_label_overwritten_in_place_between_judging_and_taking_away_is_put_back(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = results / "training.lock"
    path.write_text(f"{a_dead_pid()}\n")
    real, pending = os.rename, [1]

    def rename(source: Any, target: Any, **where: Any) -> None:
        if source == "training.lock" and pending:
            pending.clear()
            path.write_text(f"{os.getpid()}\n")
        real(source, target, **where)

    monkeypatch.setattr(os, "rename", rename)
    assert isinstance(enter(results), Held)
    assert path.read_text() == f"{os.getpid()}\n"


def test_an_exchanged_label_is_put_back_where_there_are_no_hard_links(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    exchange_before_rename(monkeypatch, results, f"{os.getpid()}\n")
    without_links(monkeypatch)
    assert isinstance(enter(results), Held)
    assert (results / "training.lock").read_text() == f"{os.getpid()}\n"
    assert names(results) == {"training.lock"}


def test_a_label_deleted_between_judging_and_taking_away_leaves_the_way_free(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = results / "training.lock"
    path.write_text(f"{a_dead_pid()}\n")
    real = os.rename

    def rename(source: Any, target: Any, **where: Any) -> None:
        if source == "training.lock" and path.exists():
            path.unlink()
        real(source, target, **where)

    monkeypatch.setattr(os, "rename", rename)
    taken(results).release()


def test_a_label_that_changes_without_end_is_not_fought_for(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = results / "training.lock"
    path.write_text(f"{a_dead_pid()}\n")
    real = os.rename

    def rename(source: Any, target: Any, **where: Any) -> None:
        if source == "training.lock":
            path.write_text(f"{a_dead_pid()}\n")
        real(source, target, **where)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(label, "EMPTY_GRACE_S", 0)
    assert enter(results) == Unknown("the label changes faster than it can be read")


def test_a_live_label_that_appears_before_ours_is_up_refuses_us_with_nothing_left(results: Path) -> None:
    found = taken(results)
    (results / "training.lock").write_text(f"{os.getppid()}\n")
    verdict = found.publish(mine(found))
    assert isinstance(verdict, Held)
    assert verdict.pid == os.getppid()
    assert names(results) == {"training.lock"}
    found.release()
    assert names(results) == {"training.lock"}


def test_a_stale_label_that_appears_before_ours_is_up_is_cleared(results: Path) -> None:
    found = taken(results)
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    assert found.publish(mine(found)) is None
    assert (results / "training.lock").read_text() == f"{os.getpid()}\n"
    found.release()


# Settling.


def test_an_old_style_trainer_that_overwrites_in_place_while_we_settle_is_seen_and_we_withdraw(results: Path) -> None:
    found = taken(results, settle_s=0.1)
    assert found.publish(mine(found)) is None
    path = results / "training.lock"
    verdict = found.settle(sleep=lambda _s: path.write_text(f"{os.getppid()}\n"))
    assert isinstance(verdict, Held)
    assert verdict.pid == os.getppid()
    assert path.read_text() == f"{os.getppid()}\n"
    assert names(results) == {"training.lock"}
    found.release()
    assert names(results) == {"training.lock"}


def test_a_label_replaced_by_another_file_while_we_settle_is_seen(results: Path) -> None:
    found = taken(results, settle_s=0.1)
    assert found.publish(mine(found)) is None

    def replace_label(_s: float) -> None:
        (results / "training.lock").unlink()
        (results / "training.lock").write_text(f"{os.getppid()}\n")

    assert isinstance(found.settle(sleep=replace_label), Held)
    found.release()
    assert names(results) == {"training.lock"}


def test_a_label_that_nobody_touches_settles(results: Path) -> None:
    found = taken(results, settle_s=0.1)
    waited: list[float] = []
    assert found.publish(mine(found)) is None
    assert found.settle(sleep=waited.append) is None
    assert waited == [0.1]
    found.release()


def test_settling_is_longer_after_an_old_label_and_none_after_one_of_our_own_kind(results: Path) -> None:
    dead = a_dead_pid()
    (results / "training.lock").write_text(f"{dead}\n")
    found = taken(results, settle_s=0.1)
    assert found.settle_s == lock.SETTLE_AFTER_TAKEOVER_S
    found.release()
    gone = replace(process.identify_self(), pid=dead)
    (results / "training.lock").write_text(f"{dead}\n")
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, gone)))
    found = taken(results, settle_s=0.1)
    assert found.settle_s == 0
    found.release()


# Moved, replaced, copied.


def test_a_moved_directory_stays_held_and_is_released_where_it_is(held: DirectoryLock, results: Path) -> None:
    moved = results.with_name("moved")
    results.rename(moved)
    assert not held.is_in_place()
    assert held.current_path() == str(moved)
    assert enter(moved) == Busy()
    held.release()
    assert names(moved) == set()
    taken(moved).release()


def test_a_directory_put_in_the_place_of_the_moved_one_is_another(held: DirectoryLock, results: Path) -> None:
    results.rename(results.with_name("moved"))
    results.mkdir()
    assert not held.is_in_place()
    other = taken(results)
    other.publish(mine(other))
    held.release()
    assert names(results) == {"training.lock", "training.owner.json"}
    other.release()


def test_a_deleted_directory_has_no_path(held: DirectoryLock, results: Path) -> None:
    shutil.rmtree(results)
    assert held.current_path() is None
    held.release()


def test_a_directory_replaced_between_opening_and_locking_is_not_the_one_we_hold(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, pending = fcntl.flock, [1]

    def flock(fd: int, how: int) -> None:
        if pending:
            pending.clear()
            results.rename(results.with_name("moved"))
            results.mkdir()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    found = taken(results)
    assert found.inode == results.stat().st_ino
    found.release()


def test_a_copy_of_a_held_directory_is_free(held: DirectoryLock, results: Path) -> None:
    copy = results.with_name("copy")
    shutil.copytree(results, copy)
    found = taken(copy)
    assert found.took_over is not None
    assert "copied from" in found.took_over.proof
    assert held.label_is_ours()
    found.release()


def test_the_way_to_the_directory_may_be_a_link(results: Path, tmp_path: Path) -> None:
    (tmp_path / "short").symlink_to(results)
    found = taken(tmp_path / "short")
    assert enter(results) == Busy()
    found.release()


# Forks and inherited descriptors.


def test_a_forked_childs_exit_releases_nothing(held: DirectoryLock, results: Path) -> None:
    pid = os.fork()
    if pid == 0:
        held.release()
        os._exit(0)
    os.waitpid(pid, 0)
    assert held.label_is_ours()
    assert enter(results) == Busy()


def test_the_descriptor_is_closed_on_exec(held: DirectoryLock) -> None:
    assert not os.get_inheritable(held.fd)


def test_an_inherited_lock_is_adopted(held: DirectoryLock, results: Path) -> None:
    inherited = os.dup(held.truth)
    adopted = lock.adopt(results, inherited)
    assert adopted is not None
    assert not os.get_inheritable(inherited)
    held.close()
    assert enter(results) == Busy()
    adopted.take_label_for_ours(os.getpid())
    adopted.release()
    assert names(results) == set()
    taken(results).release()


def test_a_descriptor_of_something_else_is_not_adopted(held: DirectoryLock, results: Path, tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    assert lock.adopt(results, other) is None
    os.close(other)
    assert lock.adopt(results, 999) is None
    another_open = os.open(results, os.O_RDONLY)
    assert lock.adopt(results, another_open) is None
    os.close(another_open)
    assert lock.adopt(tmp_path / "nowhere", held.truth) is None


# File systems that can less, full disks, missing rights.


def without_directory_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)


def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)


def test_where_directories_cannot_be_locked_a_guard_file_is(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_directory_locks(monkeypatch)
    found = taken(results)
    assert found.truth != found.fd
    assert enter(results) == Busy()
    found.publish(mine(found))
    found.release()
    assert names(results) == {rundir.GUARD}  # never unlinked: its inode is the truth
    taken(results).release()


def test_two_processes_exclude_each_other_by_the_guard_file(
    spawn: Spawner, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    less = """
    import errno, fcntl, os, stat
    real = fcntl.flock
    def flock(fd, how):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTSUP, "not supported")
        real(fd, how)
    fcntl.flock = flock
    """
    child = spawn.python(less + TAKE, results, stdin=subprocess.PIPE)
    child.wait_for("holding")
    without_directory_locks(monkeypatch)
    assert enter(results) == Busy()
    child.signal(signal.SIGKILL)
    child.wait()
    taken(results).release()


def test_a_guard_files_lock_is_adopted_too(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_directory_locks(monkeypatch)
    found = taken(results)
    adopted = lock.adopt(results, os.dup(found.truth))
    assert adopted is not None
    found.close()
    assert enter(results) == Busy()
    adopted.release()


def test_where_there_are_no_hard_links_the_label_is_created_exclusively(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch)
    found = taken(results)
    assert found.publish(mine(found)) is None
    assert found.label_is_ours()
    assert names(results) == {"training.lock", "training.owner.json"}
    found.release()
    assert names(results) == set()


def test_where_there_are_no_hard_links_a_live_label_still_refuses(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch)
    found = taken(results)
    (results / "training.lock").write_text(f"{os.getppid()}\n")
    verdict = found.publish(mine(found))
    assert isinstance(verdict, Held)
    assert names(results) == {"training.lock"}
    found.release()


def test_an_exclusively_created_label_that_cannot_be_written_is_taken_away(
    fd: int, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda _fd, _data: 1)
    with pytest.raises(OSError, match="No space"):
        label.create_exclusively(fd, b"4242\n")
    assert names(results) == set()


def test_on_a_full_disk_publishing_fails_with_nothing_left_and_the_directory_free(results: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            found = taken(results)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            try:
                found.publish(mine(found))
            except OSError:
                if names(results) == set():
                    found.release()
                    taken(results).release()
                    os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_a_disk_that_fills_up_in_mid_record_is_told_at_once(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = taken(results)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    with pytest.raises(OSError, match="No space"):
        found.publish(mine(found))
    assert names(results) == set()
    found.release()


def test_a_read_only_directory_is_refused_with_the_systems_reason(open_results: Path) -> None:
    open_results.chmod(0o755)

    def attempt() -> str:
        found = enter(open_results, settle_s=0)
        if not isinstance(found, DirectoryLock):
            return type(found).__name__
        found.publish(owner_of(open_results, process.identify_self()))
        return "published"

    assert "PermissionError" in as_nobody(attempt)
    assert names(open_results) == set()
    taken(open_results).release()


def test_another_users_live_lock_is_not_stolen(open_results: Path) -> None:
    open_results.chmod(0o777)
    (open_results / "training.lock").write_text(f"{os.getpid()}\n")
    assert as_nobody(lambda: type(enter(open_results)).__name__) == "Held"
    assert names(open_results) == {"training.lock"}


def test_a_directory_that_may_not_be_read_is_an_error(open_results: Path) -> None:
    open_results.chmod(0o700)
    assert "PermissionError" in as_nobody(lambda: str(enter(open_results)))


def test_a_label_that_may_not_be_read_is_respected(open_results: Path) -> None:
    open_results.chmod(0o777)
    (open_results / "training.lock").write_text(f"{a_dead_pid()}\n")
    (open_results / "training.lock").chmod(0o600)
    assert as_nobody(lambda: type(enter(open_results)).__name__) == "Unknown"
    assert names(open_results) == {"training.lock"}


@pytest.mark.parametrize("what", ["missing", "file"])
def test_what_is_no_directory_is_an_error(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "file":
        path.touch()
    with pytest.raises(OSError, match=what):
        enter(path)


# Survivors.


ORPHAN = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-S", "-c", '''
import os, time
os.closerange(3, 1000)
print("orphan", os.getpid(), flush=True)
time.sleep(600)
'''], start_new_session=True)
"""


def test_survivors_that_closed_every_descriptor_are_refused_until_they_are_gone(spawn: Spawner, results: Path) -> None:
    run_id = f"run-{spawn.mark}"
    parent = spawn.python(ORPHAN, env={process.RUN_ID_VARIABLE: run_id})
    parent.wait()
    wait_until(lambda: parent.text().endswith("\n"))
    pid = int(parent.text().split()[-1])
    dead = replace(process.identify_self(), pid=parent.pid)
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, dead, run_id)))
    (results / "training.lock").write_text(f"{parent.pid}\n")
    before = names(results)
    refused = enter(results)
    assert isinstance(refused, Survivors)
    assert (refused.run_id, [one.pid for one in refused.processes]) == (run_id, [pid])
    assert names(results) == before
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: isinstance(found := enter(results, settle_s=0), DirectoryLock) and (found.release() or True))


def test_survivors_of_the_last_run_are_found_by_its_record_when_the_lock_was_deleted(results: Path) -> None:
    asked: list[str] = []

    def carriers(run_id: str) -> list[Any]:
        asked.append(run_id)
        return [process.identify_self()]

    refused = enter(results, last_run=lambda _fd: "run-7", carriers=carriers)
    assert asked == ["run-7"]
    assert isinstance(refused, Survivors)
    taken(results).release()


# The label and the record while the run lives.


def test_the_label_is_ours_only_with_our_inode_and_our_text(held: DirectoryLock, results: Path) -> None:
    path = results / "training.lock"
    assert held.label_is_ours()
    path.write_text("1\n")
    assert not held.label_is_ours()
    path.write_text(f"{os.getpid()}\n")
    assert held.label_is_ours()
    path.rename(results / "aside")  # and not deleted: a file system gives a freed inode to the next file
    assert not held.label_is_ours()
    path.write_text(f"{os.getpid()}\n")
    assert not held.label_is_ours()
    path.unlink()


def test_a_strangers_label_is_not_taken_down_at_release(held: DirectoryLock, results: Path) -> None:
    path = results / "training.lock"
    path.unlink()
    path.write_text("1\n")
    held.release()
    assert path.read_text() == "1\n"
    assert names(results) == {"training.lock"}


def test_relabelling_leaves_no_moment_without_a_label(held: DirectoryLock, results: Path) -> None:
    missing: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            if not (results / "training.lock").exists():
                missing.append(1)

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(50):
        assert held.relabel(mine(held))
    over.set()
    looker.join()
    assert missing == []
    assert held.label_is_ours()


def test_a_reader_never_sees_half_a_record(held: DirectoryLock, results: Path) -> None:
    over = threading.Event()
    torn: list[bytes] = []

    def look() -> None:
        while not over.is_set():
            data = (results / "training.owner.json").read_bytes()
            try:
                json.loads(data)
            except ValueError:
                torn.append(data)

    looker = threading.Thread(target=look)
    looker.start()
    for n in range(200):
        held.write_record(owner_of(results, process.identify_self(), argv=("x" * n * 10,)))
    over.set()
    looker.join()
    assert torn == []


def test_eight_processes_at_once_have_one_holder(spawn: Spawner, results: Path) -> None:
    children = [spawn.python(TAKE, results, stdin=subprocess.PIPE) for _ in range(8)]

    def settled() -> bool:
        said = [child.text() for child in children]
        return sum("holding" in text for text in said) + sum("Busy" in text for text in said) == 8

    wait_until(settled)
    holders = [child for child in children if "holding" in child.text()]
    assert len(holders) == 1
    assert (results / "training.lock").read_text() == f"{holders[0].pid}\n"
    assert holders[0].popen.stdin is not None
    holders[0].popen.stdin.close()
    assert holders[0].wait() == 0
    assert names(results) == set()


def test_taking_and_refusing_need_no_torch() -> None:
    code = "import sys, solorun.lock; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
