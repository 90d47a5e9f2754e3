"""A file appears under its final name whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from kssm.atomicfile import clear_dead, nameless, reason, remedy, replacing

NAME = r"thing\.bin"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_final_name_appears_only_at_the_end(tmp_path: Path) -> None:
    final = tmp_path / "thing.bin"
    with replacing(final) as file:
        file.write(b"new")
        assert not final.exists()
        assert file.path.name.startswith(f".thing.bin.{os.getpid()}-")
    assert final.read_bytes() == b"new"
    assert names(tmp_path) == ["thing.bin"]


@pytest.mark.parametrize("trouble", [OSError(errno.EIO, "fault"), KeyboardInterrupt(), ValueError("any")])
def test_trouble_leaves_the_old_file_and_nothing_else(tmp_path: Path, trouble: BaseException) -> None:
    final = tmp_path / "thing.bin"
    final.write_bytes(b"old")
    with pytest.raises(type(trouble)), replacing(final) as file:
        file.write(b"half")
        raise trouble
    assert final.read_bytes() == b"old"
    assert names(tmp_path) == ["thing.bin"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:7])))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data[:3]), at))
    with replacing(tmp_path / "thing.bin") as file:
        file.write(bytes(range(100)))
        file.write_at(10, b"0123456789")
        file.write(b"end")
    expected = bytes(range(10)) + b"0123456789" + bytes(range(20, 100)) + b"end"
    assert (tmp_path / "thing.bin").read_bytes() == expected


@pytest.mark.parametrize("system", ["takes it", "refuses", "has it not"])
def test_the_disk_is_told_to_begin_before_all_is_written(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges: list[tuple[int, int]] = []

    def advise(_descriptor: int, offset: int, length: int, _advice: int) -> None:
        ranges.append((offset, length))
        if system == "refuses":
            raise OSError(errno.EINVAL, "not on this disk")

    if system == "has it not":
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
        monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    monkeypatch.setattr("kssm.atomicfile._EARLY", 1000)
    with replacing(tmp_path / "thing.bin") as file:
        for _ in range(25):
            file.write(bytes(100))
    assert (tmp_path / "thing.bin").stat().st_size == 2500
    assert ranges == ([] if system == "has it not" else [(0, 1000), (1000, 1000)])


def test_a_directory_that_was_moved_away_is_noticed(tmp_path: Path) -> None:
    here = tmp_path / "run"
    here.mkdir()
    with replacing(here / "thing.bin") as file:
        file.require_in_place()
        here.rename(tmp_path / "moved")
        with pytest.raises(FileNotFoundError):
            file.require_in_place()
        here.mkdir()
        file.path.write_bytes(b"another file of that name")
        with pytest.raises(FileNotFoundError):
            file.require_in_place()
        file.path.unlink()
        here.rmdir()
        (tmp_path / "moved").rename(here)
    assert (here / "thing.bin").exists()


def test_a_failed_directory_sync_that_the_disk_does_not_know_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse_directories(descriptor: int) -> None:
        if os.fstat(descriptor).st_mode & 0o040000:
            raise OSError(errno.EINVAL, "not for directories")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_directories)
    with replacing(tmp_path / "thing.bin") as file:
        file.write(b"x")
    assert (tmp_path / "thing.bin").exists()


@pytest.mark.parametrize("system", ["takes it", "refuses"])
def test_where_fsync_stops_at_the_drives_cache_file_and_name_are_both_sent_beyond_it(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, plain = list[bool](), list[bool]()

    def control(descriptor: int, request: int) -> int:
        assert request == 51
        full.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        if system == "refuses":
            raise OSError(errno.ENOTSUP, "a network disk")
        return 0

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda descriptor: plain.append(stat.S_ISDIR(os.fstat(descriptor).st_mode)))
    with replacing(tmp_path / "thing.bin") as file:
        file.write(b"x")
    assert full == [False, True], "the file, then the directory with its name"
    assert plain == (full if system == "refuses" else [])


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EBADF, errno.ENXIO])
def test_a_disk_that_fails_beyond_its_cache_is_not_asked_again_and_called_safe(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def control(_descriptor: int, _request: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    with pytest.raises(OSError, match=os.strerror(number)), replacing(tmp_path / "thing.bin") as file:
        file.write(b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS])
def test_a_disk_that_knows_only_fsync_is_asked_for_that(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def control(_descriptor: int, _request: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", asked.append)
    with replacing(tmp_path / "thing.bin") as file:
        file.write(b"x")
    assert len(asked) == 2


def test_a_dead_writers_file_is_cleared_and_a_live_ones_is_not(tmp_path: Path) -> None:
    dead = tmp_path / ".thing.bin.1-0123abcd.tmp"
    dead.write_bytes(b"half")
    with replacing(tmp_path / "thing.bin") as file:
        assert clear_dead(tmp_path, NAME) == [dead]
        assert file.path.exists()


@pytest.mark.parametrize(
    "name",
    [
        "thing.bin",
        ".thing.bin.tmp",
        ".thing.bin.1-0123abcd.tmp.bak",
        ".other.bin.1-0123abcd.tmp",
        ".thing.bin.1-XY.tmp",
    ],
)
def test_files_of_other_names_are_not_ours_to_clear(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"theirs")
    assert clear_dead(tmp_path, NAME) == []
    assert (tmp_path / name).exists()


def test_a_link_or_directory_under_a_private_name_is_left(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"x")
    (tmp_path / ".thing.bin.1-0123abcd.tmp").symlink_to(target)
    (tmp_path / ".thing.bin.2-0123abcd.tmp").mkdir()
    assert clear_dead(tmp_path, NAME) == []
    assert target.exists()


def test_a_missing_directory_has_nothing_to_clear(tmp_path: Path) -> None:
    assert clear_dead(tmp_path / "gone", NAME) == []


def test_every_disk_error_has_a_reason_and_a_remedy() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert reason(full) == "no space left on device"
    assert "free space" in remedy(full)
    assert remedy(OSError("odd"))


def test_a_dead_writers_file_that_cannot_even_be_closed_is_cleared_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".thing.bin.1-0123abcd.tmp").write_bytes(b"half")
    close = os.close

    def refused(fd: int) -> None:
        close(fd)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "close", refused)
    assert [path.name for path in clear_dead(tmp_path, NAME)] == [".thing.bin.1-0123abcd.tmp"]
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_a_file_without_a_name_is_gone_with_its_block_and_a_kill_before_that_leaves_what_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nameless(tmp_path / "thing.bin") as file:
        file.write(b"for a while")
        assert names(tmp_path) == []
        file.seek(0)
        assert file.read() == b"for a while"

    def killed(_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt), nameless(tmp_path / "thing.bin"):
        pytest.fail("it must not begin")
    monkeypatch.undo()
    assert len(names(tmp_path)) == 1
    clear_dead(tmp_path, NAME)
    assert names(tmp_path) == []
