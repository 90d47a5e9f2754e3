"""Room for the next checkpoints."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from solorun import disk
from solorun.disk import FLOOR, Room
from solorun.settings import Settings


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = os.getuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "none", place], check=False
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("only root can mount a small file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_small_disk_is_read_and_low(small_disk: Path) -> None:
    results = small_disk / "mine"
    results.mkdir()
    (results / "checkpoint_10.pt").write_bytes(bytes(400_000))
    (results / "checkpoint_9.pt").write_bytes(bytes(10))
    room = disk.read(results)
    assert room is not None
    assert room.checkpoint == 400_000
    assert 400_000 <= room.free <= 1 << 20
    assert disk.is_low(room, Settings())
    assert not disk.is_full(room)
    (results / "checkpoint_11.pt").write_bytes(bytes(500_000))
    room = disk.read(results)
    assert room is not None
    assert disk.is_full(room)


def test_a_disk_without_free_inodes_is_full(small_disk: Path) -> None:
    for number in range(60):
        (small_disk / f"f{number}").touch()
    room = disk.read(small_disk)
    assert room is not None
    assert room.inodes is not None
    assert disk.is_full(room)


def test_a_directory_that_is_not_there_yet_is_read_where_it_would_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_1.pt").write_bytes(bytes(100))
    there, missing = disk.read(tmp_path), disk.read(tmp_path / "a" / "b")
    assert there is not None
    assert missing is not None
    assert (there.checkpoint, missing.checkpoint) == (100, 0)
    assert missing.free > 0


def test_what_is_no_directory_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert disk.read(tmp_path / "file") is None


@pytest.mark.parametrize(
    ("free", "checkpoint", "inodes", "low", "full"),
    [
        (1000, 100, None, False, False),
        (199, 100, None, True, False),
        (99, 100, None, True, True),
        (2 * FLOOR, 0, None, False, False),
        (FLOOR, 0, None, True, False),
        (1, 0, None, True, False),
        (0, 0, None, True, True),
        (1000, 100, 1000, False, False),
        (1000, 100, 3, True, True),
    ],
)
def test_low_and_full_by_the_newest_checkpoint_or_a_floor(
    free: int, checkpoint: int, inodes: int | None, low: bool, full: bool
) -> None:
    room = Room(Path("r"), free, inodes, checkpoint)
    assert (disk.is_low(room, Settings(disk_low_checkpoints=2.0)), disk.is_full(room)) == (low, full)
