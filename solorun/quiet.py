"""Quiet results directories, whose run is over: a status of thousands of them asks each only whether it has changed.

A row is kept with the stamps of the directory and of every file that it tells of: while these are the same, so is the
row. What no stamp shows is asked every time: which processes live, and how old things are. Only a directory that nobody
holds is ever kept; one that is held, waited for, or only just written to is looked at as if nothing were known.
"""

from __future__ import annotations

import os
import stat
import sys

from solorun import kept, process
from solorun.owner import Free, Stale
from solorun.rundir import LABEL, LOG, OWNER, PROGRESS, RUN, WAITING, below, checkpoint_step, may_enter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from typing import Any

    from solorun.runstate import Evidence

    Row = dict[str, Any]
    Found = tuple[kept.Stamp, tuple[tuple[str, kept.Stamp], ...], bool, bool, tuple[str, ...]]
    """Stamps of a directory and of its files; whether the last is a checkpoint; whether there is a log; its folders."""

    Entry = tuple[Found, int, float | None, tuple[Any, ...]]
    """What was found; the label's PID or 0; the time of the last step; the values of the row."""

PLACE = "quiet"
"""Where the kept files lie in the user's state directory, one for each folder of many results directories."""

_FORGOTTEN_S = 90 * 86_400.0


class _Folder:
    """A folder of many results directories: where its file lies, on which device, and what is kept of each by name."""

    def __init__(self, file: str, device: int, version: str) -> None:
        self.file = file
        self.version = version
        self.device = device
        self.keys: tuple[str, ...] = ()
        self.entries: dict[str, Entry] = {}
        self.has_news = False

    def known(self) -> Mapping[str, Entry]:
        """What an earlier status of this version has kept."""
        answer = kept.read(self.file)
        if not isinstance(answer, tuple) or answer[0] != self.version:
            return {}
        self.keys = answer[1]
        entries: dict[str, Entry] = answer[2]
        return entries

    def keep(self) -> None:
        """Write it down for the next status."""
        kept.write(self.file, (self.version, self.keys, self.entries))


class Quiet:
    """What is kept of the results directories below some roots, for one status.

    Args:
        state: the user's state directory.
        version: of this program; what another one kept is not used.
        now: seconds since the epoch.
        alive: the ids of the runs of which a process lives.
    """

    def __init__(self, state: str, version: str, now: float, alive: Callable[[], Collection[str]]) -> None:
        self._version = version
        self._place = os.path.join(state, PLACE)
        self._now = now
        self._alive = alive
        self._folders: dict[str, _Folder] = {}
        self.rows: dict[str, Row] = {}
        """The rows of the directories that have not changed, by path."""

    def recall(self, path: str, names: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """Look which directories of a folder have not changed; their rows are in `rows` then.

        Args:
            path: of the folder.
            names: the directories in it.

        Returns:
            Those that have not changed, each with the folders in it, in which other results directories may lie.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return {}
        try:
            folder = self._folder(path, os.fstat(fd))
            return {} if folder is None else self._recall(path, names, fd, folder)
        finally:
            os.close(fd)

    def _folder(self, path: str, facts: os.stat_result) -> _Folder | None:
        """None on a disk that other machines write to as well: it shows their changes late."""
        if process.foreign_disk(os.path.realpath(path)):
            return None
        file = os.path.join(self._place, f"{facts.st_dev:x}-{facts.st_ino:x}")
        return self._folders.setdefault(path, _Folder(file, facts.st_dev, self._version))

    def _recall(self, path: str, names: Sequence[str], fd: int, folder: _Folder) -> Mapping[str, tuple[str, ...]]:
        known = folder.known()
        alive = self._alive() if known else ()
        inner: dict[str, tuple[str, ...]] = {}
        for name in names:
            entry = known.get(name)
            if entry is None or (ages := _still(entry, fd, name, folder.device, self._now)) is None:
                continue
            row = dict(zip(folder.keys, entry[3], strict=True))
            if row["run_id"] in alive:  # its run is over, but not all of its processes
                continue
            row["directory"] = full = below(path, name)
            row["log_age_s"], row["step_age_s"], row["checkpoint_age_s"] = ages
            self.rows[full] = row
            folder.entries[name] = entry
            inner[name] = entry[0][4]
        return inner

    def look(self, path: str) -> Found | None:
        """The stamps of a directory, taken before it is looked at; None where nothing is to be kept of it."""
        folder = self._folders.get(os.path.dirname(path) or ".")
        if folder is None:
            return None
        try:
            found = _look(path, folder.device)
        except OSError:
            return None
        if found is None:
            return None
        stamps = (found[0], *(seen for _, seen in found[1]))
        return found if all(kept.is_settled(seen, self._now) for seen in stamps) else None

    def learn(self, path: str, found: Found, row: Row, evidence: Evidence) -> None:
        """Keep the row of a directory if it turned out to be quiet.

        Args:
            path: of the directory.
            found: its stamps, from before it was looked at.
            row: as it was told.
            evidence: what it was told from.
        """
        verdict, label = evidence.verdict, evidence.label
        left = isinstance(verdict, Stale) and label is not None and label.pid and process.is_unused(label.pid)
        if not (left or isinstance(verdict, Free)) or evidence.owner is not None or row["run_id"] in self._alive():
            return
        if evidence.survivors:
            return
        progress = evidence.progress
        step_at = progress.time if progress is not None and row["step_age_s"] is not None else None
        folder = self._folders[os.path.dirname(path) or "."]
        folder.keys, folder.has_news = tuple(row), True
        folder.entries[os.path.basename(path)] = (found, label.pid or 0 if label else 0, step_at, tuple(row.values()))

    def keep(self) -> None:
        """Write down what was learned."""
        news = [folder for folder in self._folders.values() if folder.has_news]
        for folder in news:
            folder.keep()
        if news:
            kept.sweep(self._place, self._now - _FORGOTTEN_S)


def _look(path: str, device: int) -> Found | None:
    """None for a directory that is held, waited for, or has something odd in the place of a file."""
    facts = os.lstat(path)
    with os.scandir(path) as listing:
        entries = {entry.name: entry for entry in listing}
    if facts.st_dev != device or OWNER in entries or WAITING in entries:
        return None
    newest = _newest(entries)
    names = [name for name in (RUN, PROGRESS, LABEL) if name in entries] + newest
    files = [(sys.intern(f"/{name}"), os.lstat(f"{path}/{name}")) for name in names]  # names that repeat are kept once
    if len(newest) > 1 or not all(stat.S_ISREG(seen.st_mode) for _, seen in files):
        return None
    inner = tuple(sorted(entry.name for entry in entries.values() if may_enter(entry)))
    stamps = tuple((name, kept.stamp(seen)) for name, seen in files)
    return kept.stamp(facts), stamps, bool(newest), LOG in entries, inner


def _newest(names: Iterable[str]) -> list[str]:
    """The checkpoints of the highest step; more than one where the same step was saved in several forms."""
    steps = {name: step for name in names if (step := checkpoint_step(name)) is not None}
    highest = max(steps.values(), default=0)
    return [name for name, step in steps.items() if step == highest]


_Ages = tuple[float | None, float | None, float | None]


def _still(entry: Entry, fd: int, name: str, device: int, now: float) -> _Ages | None:
    """The ages of log, last step and newest checkpoint; None when anything has changed, or lives again."""
    ((inode, changed), files, has_checkpoint, has_log, _), pid, step_at, _ = entry
    log_age = checkpoint_age = None
    try:
        facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if facts.st_ctime_ns != changed or facts.st_ino != inode or facts.st_dev != device:
            return None
        for file, (inode, changed) in files:
            facts = os.stat(name + file, dir_fd=fd, follow_symlinks=False)
            if facts.st_ctime_ns != changed or facts.st_ino != inode:
                return None
        if has_checkpoint:
            checkpoint_age = max(0.0, now - facts.st_mtime)
        if has_log:
            log_age = max(0.0, now - os.stat(f"{name}/{LOG}", dir_fd=fd).st_mtime)
    except OSError:
        return None
    if pid and not process.is_unused(pid):
        return None
    return log_age, None if step_at is None else max(0.0, now - step_at), checkpoint_age
