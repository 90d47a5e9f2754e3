"""Room on disk for the next checkpoints. Quotas cannot be seen from here, and nothing is said of them."""

from __future__ import annotations

import os
from pathlib import Path

from solorun.frozen import dataclass
from solorun.rundir import checkpoint_files
from solorun.settings import Settings

FLOOR = 256 * 1024 * 1024
"""Bytes that a run without a checkpoint so far is taken to need for one."""

INODES = 16
"""Files that a start and its first checkpoint make, generously."""


@dataclass(frozen=True, slots=True)
class Room:
    """What was seen.

    Args:
        directory: the results directory.
        free: bytes that this user may still write.
        inodes: files that this user may still make; None where the file system does not count them.
        checkpoint: bytes of the newest checkpoint; 0 when there is none.
        device: number of the file system.
    """

    directory: Path
    free: int
    inodes: int | None
    checkpoint: int
    device: int = 0

    @property
    def checkpoints(self) -> float:
        """How many next checkpoints fit."""
        return self.free / (self.checkpoint or FLOOR)


def read(directory: Path) -> Room | None:
    """Look at the disk of a results directory, or of where it would be made; None when that cannot be told."""
    place = directory.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        facts, device = os.fstatvfs(fd), os.fstat(fd).st_dev
        newest = next(iter(checkpoint_files(fd)), None) if place == directory.absolute() else None
    except OSError:
        return None
    finally:
        os.close(fd)
    inodes = facts.f_favail if facts.f_files else None
    return Room(directory, facts.f_bavail * facts.f_frsize, inodes, newest.size if newest else 0, device)


def is_low(room: Room, settings: Settings) -> bool:
    """Whether a person should be warned: fewer checkpoints fit than the settings want."""
    return room.checkpoints < settings.disk_low_checkpoints or is_full(room)


def is_full(room: Room) -> bool:
    """Whether not even the next checkpoint fits: then training on is lost work. With no byte free no run starts."""
    no_inodes = room.inodes is not None and room.inodes < INODES
    return no_inodes or room.free == 0 or (room.checkpoint > 0 and room.free < room.checkpoint)
