"""A results directory: the one place that spells its file names, and how such directories are found."""

from __future__ import annotations

import os
import stat

from solorun.frozen import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    Recall = Callable[[str, Sequence[str]], Mapping[str, Sequence[str]]]

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
_CHECKPOINT = "checkpoint_"


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


def checkpoint_step(name: str) -> int | None:
    """The step of a checkpoint's name, `checkpoint_STEP.KIND` in plain letters and digits; None for another name."""
    if not name.startswith(_CHECKPOINT) or not name.isascii():
        return None
    step, _, kind = name[len(_CHECKPOINT) :].partition(".")
    return int(step) if step.isdigit() and kind.isalnum() else None


def tidy(path: str | os.PathLike[str]) -> str:
    """A path as `pathlib` spells it: no empty parts, no dots that lead nowhere, no slash at the end."""
    text = os.fspath(path)
    above = "//" if text.startswith("//") and not text.startswith("///") else "/" if text.startswith("/") else ""
    return above + "/".join(part for part in text.split("/") if part not in ("", ".")) or "."


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
        if (step := checkpoint_step(name)) is None:
            continue
        try:
            facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(facts.st_mode):
            found.append(CheckpointFile(step, name, facts.st_size, facts.st_mtime))
    return sorted(found, key=lambda file: (file.step, file.written), reverse=True)


def is_results_directory(entries: set[str]) -> bool:
    """Whether a directory with these entries was, or is, a run's."""
    return any(mark in entries for mark in MARKS)


def find_all(roots: Iterable[str | os.PathLike[str]], recall: Recall = lambda _path, _names: {}) -> list[str]:
    """Every results directory at or below these roots, sorted; none twice, also not where a root is a link.

    Links are not followed, archives not entered. Unreadable folders are passed over: a status must not fail because a
    neighbour's folder is private.

    Args:
        roots: where to look.
        recall: tells of a folder, by its path and the folders in it, which of them are known to be results directories
            and need not be listed, and what folders are in each.
    """
    found: dict[str, str] = {}
    for root in map(tidy, roots):
        if root in found:  # walked already, as a part of an earlier root
            continue
        real = os.path.realpath(root)
        for path in _walk(root, recall):  # follows no links, so below the root its path is the real one
            found.setdefault(below(real, path), below(root, path))
    return sorted(found.values(), key=by_parts)


def by_parts(path: str) -> list[str]:
    """The key that sorts paths as folders are: what is in a directory comes right after it."""
    return path.split(os.sep)


def _walk(root: str, recall: Recall) -> Iterator[str]:
    """Paths of results directories, relative to the root; empty for the root itself."""
    stack = [("", 0)]
    while stack:
        path, depth = stack.pop()
        try:
            with os.scandir(below(root, path)) as listing:
                entries = list(listing)
        except OSError:
            continue
        if is_results_directory({entry.name for entry in entries}):
            yield path
        if depth == _DEEPEST:
            continue
        names = sorted((entry.name for entry in entries if may_enter(entry)), reverse=True)
        known = recall(below(root, path), names)
        for name in names:
            inside = f"{path}/{name}" if path else name
            if name not in known:
                stack.append((inside, depth + 1))
                continue
            yield inside
            if depth + 1 < _DEEPEST:
                stack.extend((f"{inside}/{inner}", depth + 2) for inner in known[name])


def below(root: str, path: str) -> str:
    """A path below a root; one below the working directory is not spelled with its dot."""
    if root == "." or not path:
        return path or root
    return root + path if root.endswith("/") else f"{root}/{path}"


def may_enter(entry: os.DirEntry[str]) -> bool:
    """Whether results directories are looked for in this entry of a folder."""
    if entry.name in (ARCHIVE, WAITING) or entry.name.startswith("."):
        return False
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
