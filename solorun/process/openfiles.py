"""What a process has open in a directory, and on what kind of disk a directory lies."""

from __future__ import annotations

from solorun.frozen import dataclass

LOCAL_DISKS = frozenset(
    {
        "apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "overlay", "ramfs", "reiserfs",
        "tmpfs", "ufs", "xfs", "zfs",
    }
)  # fmt: skip
"""File systems of one kernel: a lock that it gives to one process, it denies to every other, in any namespace."""

WRITTEN = ("training.log", "nohup.out", "metrics", "progress", "checkpoint", "best_model")
"""Names that a trainer opens to write, where the system does not tell what a file was opened for."""

READERS = frozenset(
    {"tail", "less", "more", "cat", "head", "grep", "awk", "vim", "vi", "nvim", "nano", "emacs", "view", "bat"}
)
"""Programs that open a log to read it, for the same case."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that a process has open.

    Args:
        path: absolute, links resolved.
        writes: whether it was opened for writing.
    """

    path: str
    writes: bool


def writes_by_name(name: str, program: str) -> bool:
    """Whether a program that has this file open is taken to write it, judged by the names alone."""
    return name.lstrip(".").startswith(WRITTEN) and program not in READERS


def kind_of_disk(path: str, mounts: list[tuple[str, str]]) -> str:
    """The kind of file system that a path lies on, empty when no mount contains it.

    Args:
        path: absolute, links resolved.
        mounts: mount point and kind, in the order in which they were mounted.
    """
    found, kind = "", ""
    for point, name in mounts:
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found):  # of two on one point, the later one covers the earlier
            found, kind = point, name
    return kind
