"""Files that a fight or a kill left torn or mixed: told without executing anything, put aside and never deleted."""

from __future__ import annotations

import json
import os
import time
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from solorun.frozen import dataclass
from solorun.record import journal
from solorun.rundir import ARCHIVE, METRICS

_ZIPPED = (".pt", ".pth", ".npz", ".ckpt", ".bin")
_SAFETENSORS = ".safetensors"
_CHECKPOINTS = ("checkpoint_", "checkpoint-", "best_model.")
_LONGEST_HEADER = 100_000_000
_CHECKED_BYTES = 1 << 30
"""Larger archives are judged by their directory alone: reading them through would take minutes."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file that no run should read or go on writing.

    Args:
        name: within the results directory.
        why: one clause.
    """

    name: str
    why: str


def damaged(directory: Path) -> tuple[Damaged, ...]:
    """Torn checkpoints and mixed metrics of a directory, by name. A file that cannot be judged is whole."""
    found = []
    try:
        entries = sorted(entry.name for entry in os.scandir(directory) if entry.is_file(follow_symlinks=False))
    except OSError:
        return ()
    for name in entries:
        why = fault(directory / name)
        if why:
            found.append(Damaged(name, why))
    return tuple(found)


def fault(path: Path) -> str:
    """Why a file is torn or mixed; empty when it is whole, or of a kind that cannot be judged."""
    name = path.name
    if name.startswith("."):  # a private name: what writes it, or clears it, knows it
        return ""
    try:
        if name == METRICS:
            return _mixed_lines(path)
        is_checkpoint = name.startswith(_CHECKPOINTS)
        if is_checkpoint and path.stat().st_size == 0:
            return "it is empty"
        if name.endswith(_SAFETENSORS):
            return _torn_safetensors(path)
        if name.endswith(_ZIPPED):
            return _torn_archive(path)
        return "it is the unfinished part of a checkpoint" if is_checkpoint and name.endswith((".tmp", ".part")) else ""
    except OSError:
        return ""


def _torn_safetensors(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            return f"its header wants {length} bytes, and the file ends after {size}"
        try:
            header = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for key, entry in header.items() if key != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return "its header is not one of a safetensors file"
    wanted = 8 + length + max(ends, default=0)
    return "" if size == wanted else f"it has {size} bytes, and its header tells of {wanted}"


def _torn_archive(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size and file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):  # an older form, which nothing here can judge
            return ""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip() if size <= _CHECKED_BYTES else None
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError, ValueError) as error:
        unjudged = isinstance(error, NotImplementedError | RuntimeError)
        return "" if unjudged else "it is cut short or mixed: its archive has no whole directory"
    return f"its part {bad!r} does not match its checksum" if bad else ""


def _mixed_lines(path: Path) -> str:
    """Why a file of JSON lines is mixed. Half a line at the end is no damage: the next writer begins a new one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n") or not line.strip():
                continue
            try:
                json.loads(line)
            except (ValueError, RecursionError):
                if not _was_resumed(line):
                    return f"line {number} is mixed from more than one"
    return ""


def _was_resumed(line: bytes) -> bool:
    """Whether this is half a line that a killed writer left and a later one ended: the guard's own way."""
    return line.startswith(b"{") and line.count(b"{") == 1 and b"}" not in line


def quarantine(directory: Path, fd: int, files: Iterable[Damaged], now: float) -> Path | None:
    """Move files into `archive/quarantine-TIME/`; nothing is deleted, nothing overwritten.

    Args:
        directory: the results directory, locked by the caller.
        fd: its descriptor.
        files: what to move; what is gone by now is passed over.
        now: seconds since the epoch.

    Returns:
        Where they are; None when there was nothing to move.

    Raises:
        OSError: a file cannot be moved; what was moved stays moved.
    """
    present = [file for file in files if os.path.lexists(directory / file.name)]
    if not present:
        return None
    place = _new_place(directory / ARCHIVE, time.strftime("quarantine-%Y%m%d-%H%M%S", time.gmtime(now)))
    for file in present:
        target = place / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(directory / file.name, target)
    told = [{"name": file.name, "why": file.why} for file in present]
    journal(fd, "", "quarantined", now, place=f"{ARCHIVE}/{place.name}", files=told)
    return place


def _new_place(archive: Path, name: str) -> Path:
    archive.mkdir(exist_ok=True)
    serial = 0
    while True:
        place = archive / (name if not serial else f"{name}.{serial}")
        try:
            place.mkdir()
        except FileExistsError:
            serial += 1
        else:
            return place
