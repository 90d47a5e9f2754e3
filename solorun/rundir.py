"""A results directory: the one place that spells its file names, and how such directories are found."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LABEL = "training.lock"
OWNER = "training.owner.json"
PID = "training.pid"
LOG = "training.log"
OUTPUT = "nohup.out"
RUN = "run.json"
EVENTS = "events.jsonl"
METRICS = "metrics.jsonl"
PROGRESS = "progress"
ARCHIVE = "archive"
WAITING = "waiting"
GUARD = ".solorun-guard"
"""Locked instead of the directory where the file system cannot lock directories. Never unlinked."""

PRIVATE = ".solorun."
"""Every temporary name of the guard starts so: a crash leaves nothing that could be taken for a real file."""

MARKS = (LABEL, RUN, LOG, OWNER)
"""A directory with one of these is a results directory."""

_DEEPEST = 6
_CHECKPOINT = re.compile(r"checkpoint_(\d+)\.[A-Za-z0-9]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A checkpoint as its name and the file system tell it; whether it loads, only its trainer knows.

    Args:
        step: from the name.
        name: file name.
        size: bytes.
        written: modification time, seconds since the epoch.
    """

    step: int
    name: str
    size: int
    written: float


@dataclass(frozen=True, slots=True)
class RunDir:
    """A results directory by path."""

    path: Path

    @property
    def label(self) -> Path:
        """One line: the PID of the training process, for people and old tools."""
        return self.path / LABEL

    @property
    def owner(self) -> Path:
        """Who holds the directory, while it is held."""
        return self.path / OWNER

    @property
    def log(self) -> Path:
        """The complete log, appended to by every run."""
        return self.path / LOG

    @property
    def run(self) -> Path:
        """The record of the last run."""
        return self.path / RUN

    @property
    def events(self) -> Path:
        """The journal of the directory."""
        return self.path / EVENTS

    @property
    def metrics(self) -> Path:
        """One line per logged step."""
        return self.path / METRICS

    @property
    def progress(self) -> Path:
        """The heartbeat, overwritten in place."""
        return self.path / PROGRESS

    def archive(self, run_id: str) -> Path:
        """Where the files of an earlier run go when a new one starts afresh."""
        return self.path / ARCHIVE / run_id


def checkpoint_files(directory: int, names: Iterable[str] | None = None) -> list[CheckpointFile]:
    """The checkpoints of a results directory, newest step first; a directory that cannot be read has none.

    Args:
        directory: descriptor of the results directory.
        names: its entries, where the caller has listed them already.
    """
    found: list[CheckpointFile] = []
    try:
        listed = os.listdir(directory) if names is None else names
    except OSError:
        return []
    for name in listed:
        if not name.startswith("checkpoint_") or (match := _CHECKPOINT.fullmatch(name)) is None:
            continue
        try:
            facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(facts.st_mode):
            found.append(CheckpointFile(int(match[1]), name, facts.st_size, facts.st_mtime))
    return sorted(found, key=lambda file: (file.step, file.written), reverse=True)


def is_results_directory(entries: set[str]) -> bool:
    """Whether a directory with these entries was, or is, a run's."""
    return any(mark in entries for mark in MARKS)


def find_all(roots: Iterable[Path]) -> list[Path]:
    """Every results directory at or below these roots, sorted; none twice, also not where a root is a link.

    Links are not followed, archives not entered. Unreadable folders are passed over: a status must not fail because a
    neighbour's folder is private.
    """
    found: dict[str, str] = {}
    for root in map(str, roots):
        if root in found:  # walked already, as a part of an earlier root
            continue
        real = os.path.realpath(root)
        for below in _walk(root):  # follows no links, so below the root its path is the real one
            found.setdefault(os.path.join(real, below) if below else real, os.path.join(root, below))
    return [Path(path) for path in sorted(found.values(), key=lambda path: path.split(os.sep))]


def _walk(root: str) -> Iterator[str]:
    """Paths of results directories, relative to the root; empty for the root itself."""
    stack = [("", 0)]
    while stack:
        below, depth = stack.pop()
        try:
            with os.scandir(os.path.join(root, below)) as listing:
                entries = list(listing)
        except OSError:
            continue
        if is_results_directory({entry.name for entry in entries}):
            yield below
        if depth < _DEEPEST:
            names = [e.name for e in entries if _may_enter(e)]
            stack.extend((os.path.join(below, name), depth + 1) for name in sorted(names, reverse=True))


def _may_enter(entry: os.DirEntry[str]) -> bool:
    if entry.name in (ARCHIVE, WAITING) or entry.name.startswith("."):
        return False
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
