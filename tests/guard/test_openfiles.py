"""What a process has open, and to what end; on which disks a lock proves something."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from solorun import process
from solorun.process import darwin, linux
from solorun.process.openfiles import OpenFile, kind_of_disk, writes_by_name

from .stage import Spawner, a_dead_pid


def test_files_are_told_with_what_they_were_opened_for(results: Path) -> None:
    modes = {"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR, "append": os.O_WRONLY | os.O_APPEND}
    outside = os.open(results.parent / "mine-too", os.O_WRONLY | os.O_CREAT)
    (results / "read").touch()
    opened = [os.open(results / name, mode | os.O_CREAT) for name, mode in modes.items()]
    try:
        found = process.files_open_below(os.getpid(), str(results))
    finally:
        for fd in (*opened, outside):
            os.close(fd)
    assert set(found) == {OpenFile(str(results / name), name != "read") for name in modes}
    assert process.files_open_below(os.getpid(), str(results)) == ()
    assert process.files_open_below(a_dead_pid(), str(results)) == ()


class Ps:
    Error = OSError

    def __init__(self, *files: tuple[str, int], program: str = "python3") -> None:
        self.files = [SimpleNamespace(path=path, fd=fd) for path, fd in files]
        self.program = program

    def Process(self, _pid: int) -> Any:  # noqa: N802 - psutil's own name
        return SimpleNamespace(open_files=lambda: self.files, cmdline=lambda: [self.program, "x"])

    def disk_partitions(self, all: bool) -> list[Any]:  # noqa: A002 - psutil's own name
        assert all
        return [
            SimpleNamespace(mountpoint="/", fstype="apfs"),
            SimpleNamespace(mountpoint="/Volumes/n", fstype="smbfs"),
        ]


FILES = (("/r/training.log", 3), ("/r/notes.txt", 4), ("/other/training.log", 5))


def test_darwin_asks_the_kernel_what_a_file_was_opened_for() -> None:
    found = darwin.files_open_below(7, "/r", Ps(*FILES), lambda _pid, fd: {3: 1, 4: 3}[fd])
    assert found == [OpenFile("/r/training.log", False), OpenFile("/r/notes.txt", True)]


def test_darwin_judges_by_names_where_the_kernel_does_not_tell() -> None:
    found = darwin.files_open_below(7, "/r", Ps(*FILES), lambda _pid, _fd: None)
    assert found == [OpenFile("/r/training.log", True), OpenFile("/r/notes.txt", False)]
    found = darwin.files_open_below(7, "/r", Ps(*FILES, program="/usr/bin/tail"), lambda _pid, _fd: None)
    assert not any(file.writes for file in found)


@pytest.mark.parametrize(
    ("name", "program", "writes"),
    [
        ("training.log", "python3", True),
        ("training.log", "less", False),
        (".checkpoint_5.tmp", "python3", True),
        ("checkpoint_5.pt", "python3", True),
        ("notes.txt", "python3", False),
    ],
)
def test_which_names_are_taken_to_be_written(name: str, program: str, writes: bool) -> None:
    assert writes_by_name(name, program) is writes


def test_the_holder_of_a_lock_is_told_from_who_only_has_the_directory_open(results: Path, spawn: Spawner) -> None:
    facts = results.stat()
    code = "import fcntl, os, sys, time\nfd = os.open(sys.argv[1], os.O_RDONLY)\n{}print('up', flush=True)\n"
    code += "time.sleep(600)"
    looker = spawn.python(code.format(""), results)
    holder = spawn.python(code.format("fcntl.flock(fd, fcntl.LOCK_EX)\n"), results)
    for child in (looker, holder):
        child.wait_for("up")
    assert [one.pid for one in process.flock_holders(facts.st_dev, facts.st_ino)] == [holder.pid]
    assert not darwin.has_flock(holder.pid, facts.st_dev, facts.st_ino)
    fd = os.open(results, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_what_a_process_does_with_a_signal(spawn: Spawner) -> None:
    child = spawn.python(
        "import signal, time; signal.signal(2, signal.SIG_IGN); signal.signal(15, print); print('up', flush=True)\n"
        "time.sleep(600)"
    )
    child.wait_for("up")
    told = [process.answers(child.pid, number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert told == ["ignored", "caught", "default"]
    assert process.answers(a_dead_pid(), signal.SIGINT) == darwin.answers(child.pid, signal.SIGINT) == ""


def test_the_disk_of_a_path_is_that_of_the_nearest_mount_the_later_one_first() -> None:
    mounts = [("/", "ext4"), ("/net", "nfs4"), ("/net", "xfs"), ("/net/more", "fuse.sshfs")]
    told = {"/a": "ext4", "/net": "xfs", "/network": "ext4", "/net/x": "xfs", "/net/more/x": "fuse.sshfs"}
    assert {path: kind_of_disk(path, mounts) for path in told} == told
    assert kind_of_disk("/a", []) == ""


def test_a_foreign_disk_is_named_and_an_unknown_one_is_foreign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process.system, "mounts", lambda: [("/", "ext4"), ("/net", "nfs4"), ("/odd", "newfs")])
    assert [process.foreign_disk(path) for path in ("/a", "/net/a", "/odd")] == ["", "nfs4", "newfs"]
    monkeypatch.setattr(process.system, "mounts", list)
    assert process.foreign_disk(str(tmp_path)) == "unknown"


def test_mounts_are_read_on_both_systems() -> None:
    assert ("/", "apfs") in darwin.mounts(Ps())
    if linux.mounts():
        assert "/" in {point for point, _ in linux.mounts()}


def test_what_may_not_be_signalled_is_told() -> None:
    own = process.identify_self()
    assert process.may_signal(own)
