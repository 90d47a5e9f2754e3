"""The reserve: real room on a real disk, never another file's, gone when it is not needed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kssm.reserve import MARGIN, NAME, Reserve

SIZE = 3 << 20


@pytest.fixture
def reserve(tmp_path: Path) -> Iterator[Reserve]:
    made = Reserve(tmp_path)
    yield made
    made.close()


def taken(directory: Path) -> int:
    """Bytes that the reserve really takes on the disk; 0 without one."""
    try:
        return os.stat(directory / NAME).st_blocks * 512
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("system", ["posix_fallocate", "zeros"])
def test_it_takes_real_room_for_a_checkpoint_and_a_little_more_and_gives_it_back(
    system: str, reserve: Reserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "zeros":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    elif not hasattr(os, "posix_fallocate"):
        pytest.skip("this system has no posix_fallocate")
    reserve.keep(SIZE)
    assert SIZE + MARGIN <= taken(tmp_path) <= SIZE + 2 * MARGIN
    reserve.keep(2 * SIZE)
    assert taken(tmp_path) >= 2 * SIZE + MARGIN
    reserve.keep(SIZE // 8)
    assert taken(tmp_path) < SIZE, "what a larger model left is not kept"
    assert reserve.free()
    assert taken(tmp_path) == 0
    assert not reserve.free()


def test_what_must_fit_beside_it_is_tried_out_and_left_free(reserve: Reserve, tmp_path: Path) -> None:
    reserve.keep(SIZE, beside=SIZE)
    assert taken(tmp_path) < 2 * SIZE


def test_a_disk_that_does_not_say_how_much_is_free_has_no_room_and_ends_nothing(
    reserve: Reserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reserve.room > 0

    def refused(_descriptor: int) -> os.statvfs_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "fstatvfs", refused)
    assert reserve.room == 0


def test_zeros_that_find_no_room_leave_nothing(
    reserve: Reserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    real, calls = os.pwrite, list[int]()

    def fills_up(descriptor: int, data: bytes, at: int) -> int:
        calls.append(at)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[: SIZE // 4], at)

    monkeypatch.setattr(os, "pwrite", fills_up)
    with pytest.raises(OSError, match="No space"):
        reserve.keep(SIZE)
    assert not (tmp_path / NAME).exists()


def test_a_file_of_somebody_else_under_its_name_is_neither_overwritten_nor_deleted(
    reserve: Reserve, tmp_path: Path
) -> None:
    precious = tmp_path / "thesis.tex"
    precious.write_text("ten years")
    for put in (os.link, os.symlink):
        put(precious, tmp_path / NAME)
        with pytest.raises(OSError):
            reserve.keep(SIZE)
        assert not reserve.free()
        assert precious.read_text() == "ten years"
        os.unlink(tmp_path / NAME)
    for made in (os.mkdir, os.mkfifo):
        made(tmp_path / NAME)
        with pytest.raises(OSError):
            reserve.keep(SIZE)
        assert not reserve.free()
        (os.rmdir if made is os.mkdir else os.unlink)(tmp_path / NAME)


def test_a_directory_that_was_moved_keeps_its_reserve_and_the_one_in_its_place_gets_none(
    tmp_path: Path,
) -> None:
    here, away = tmp_path / "run", tmp_path / "moved"
    here.mkdir()
    reserve = Reserve(here)
    here.rename(away)
    here.mkdir()
    (here / NAME).write_bytes(b"another run's")
    reserve.keep(SIZE)
    assert taken(away) >= SIZE
    reserve.close()
    assert (here / NAME).read_bytes() == b"another run's"
    assert not (away / NAME).exists()
