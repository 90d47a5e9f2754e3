"""Who works in a results directory: every live process that trains into it, ours, old-style or unknown, with why.

Readers are not counted: what has a file open only to read it, or merely stands in the directory, harms nothing.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from solorun import process
from solorun.grouping import LABEL_ONLY, Claimant, Marks, group, is_relay, solorun_verb
from solorun.label import is_copy, look_at, read_label, read_owner
from solorun.neighbours import program_of
from solorun.owner import Alive, Gone, Held, Label, Owner
from solorun.process.table import Seen
from solorun.record import last_run
from solorun.rundir import ARCHIVE, MARKS, WAITING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_DEFAULT = re.compile(r"(?:^|/)train_kssm_(v\d+)\w*\.py$|^kssm train (v\d+)$", re.ASCII)
"""The procedure's trainers, whose default is results/kssm_VERSION below their working directory."""

LOCKED = "it holds the kernel's lock on the directory"

_READS = re.compile(r"resume|init|from|load|teacher|pretrain|data|eval|compare", re.IGNORECASE)


def find(directory: Path, now: float) -> tuple[Claimant, ...]:
    """Every claimant of a directory, the oldest first; nothing is changed.

    The caller and its ancestors are left out: they would end themselves.

    Args:
        directory: its path.
        now: seconds since the epoch.

    Raises:
        OSError: it cannot be read.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owner = read_owner(fd)
        owner = None if owner is None or is_copy(fd, owner) else owner
        last, facts = last_run(fd), os.fstat(fd)
        named, dead = _named(fd, owner), _dead(fd)
    finally:
        os.close(fd)
    everyone = process.census()
    mine = _caller(everyone)
    run_ids = frozenset(filter(None, (owner.run_id if owner else "", last.run_id if last else "")))
    for holder in process.flock_holders(facts.st_dev, facts.st_ino):
        named.setdefault(holder.pid, []).append(LOCKED)
    place = os.path.realpath(directory)
    seen = [one for one in everyone if one.row.pid not in mine and not _is_our_pipe(one)]
    marks = {one.row.pid: marked for one in seen if (marked := _marks(one, place, named, run_ids)) is not None}
    for pid in _on_their_way(everyone, marks):
        del marks[pid]
    left = frozenset(pid for pid in marks if dead and process.system.group(pid) == dead)
    return group(everyone, marks, owner, mine, now, left)


def _on_their_way(everyone: Iterable[Seen], marks: Mapping[int, Marks]) -> list[int]:
    """Starts that run nothing: they look whether it is their turn, or their run is over and they let go in a moment.

    One that is suspended lets nothing go, and has to be asked.
    """
    starts = {one.row.pid: one.row.parent for one in everyone if solorun_verb(one.row.argv) == "start"}
    parents = {one.row.parent for one in everyone}
    # What a start has forked, and holds at its gate, still looks like one: that is the run.
    alone = (pid for pid, parent in starts.items() if pid not in parents and parent not in starts)
    return [pid for pid in alone if pid in marks and not _is_suspended(pid)]


def _is_suspended(pid: int) -> bool:
    seen = process.probe(pid)
    return isinstance(seen, Alive) and seen.state in ("T", "t")


def _named(fd: int, owner: Owner | None) -> dict[int, list[str]]:
    """Why label and record speak of a PID."""
    named: dict[int, list[str]] = {}
    verdict, label = look_at(fd), read_label(fd)
    held = isinstance(verdict, Held)
    if held and isinstance(label, Label) and label.pid:
        named.setdefault(label.pid, []).append(LABEL_ONLY)
    if owner is not None and process.is_alive(owner.process) and owner.process.here == process.here():
        named.setdefault(owner.process.pid, []).append("training.owner.json names it as the training process")
    guard = owner.supervisor if owner else None
    if guard is not None and process.is_alive(guard) and guard.here == process.here():
        named.setdefault(guard.pid, []).append("training.owner.json names it as the guard of the run")
    return named


def _dead(fd: int) -> int:
    """The dead PID that the label names, 0 when it names none.

    No evidence by itself, since an old label's PID may have led another group meanwhile; but of what was caught here,
    the members of its process group are what an old-style trainer left.
    """
    label = read_label(fd)
    pid = label.pid if isinstance(label, Label) and label.pid else 0
    return pid if pid and isinstance(process.probe(pid), Gone) else 0


def _caller(everyone: Iterable[Seen]) -> frozenset[int]:
    """The calling process and what it descends from."""
    parents = {one.row.pid: one.row.parent for one in everyone}
    mine, at = {os.getpid()}, os.getppid()
    while at and at not in mine:
        mine.add(at)
        at = parents.get(at, 0)
    return frozenset(mine)


def _is_our_pipe(one: Seen) -> bool:
    """Whether this is what carries the caller's own output (`solorun recover DIR | tee DIR/recover.txt`)."""
    return is_relay(one) and process.system.group(one.row.pid) == os.getpgrp()


def _marks(one: Seen, place: str, named: Mapping[int, list[str]], run_ids: frozenset[str]) -> Marks | None:
    why = list(named.get(one.row.pid, ()))
    if one.run_id in run_ids:
        why.append(f"it carries the run id {one.run_id}")
    verb = solorun_verb(one.row.argv)
    files: tuple[str, ...] = ()
    if verb in ("", "start"):  # the other verbs read, or change for an instant
        opened = (file.path for file in process.files_open_below(one.row.pid, place) if file.writes)
        files = tuple(sorted({name for path in opened if (name := own_name(path, place))}))
    if files:
        why.append(f"it has {_listed(files)} open for writing")
    if not verb and trains_into(one.row.argv, one.cwd, place):
        why.append("its command line trains into this directory")
    if not why:
        return None
    # A script's `command &` inherits SIGINT as ignored: such a trainer hears at best SIGTERM.
    deaf = process.answers(one.row.pid, signal.SIGINT) == "ignored"
    term = deaf and process.answers(one.row.pid, signal.SIGTERM) == "caught"
    if deaf and not term:
        why.append("it ignores SIGINT, as what a script starts with & does, so it may not hear that it is asked")
    return Marks(tuple(why), files, signal.SIGTERM if term else signal.SIGINT)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def own_name(path: str, place: str) -> str:
    """A file's name within a results directory; empty when it is another run's, archived, or an editor's.

    Args:
        path: of the file, links resolved.
        place: the results directory, links resolved.
    """
    name = os.path.relpath(path, place)
    parts = name.split("/")
    hidden = parts[-1].startswith(".") and not parts[-1].startswith((".checkpoint", ".best_model"))
    if hidden or parts[0] in (ARCHIVE, WAITING, ".."):
        return ""
    for depth in range(1, len(parts)):  # a results directory within this one has claimants of its own
        below = os.path.join(place, *parts[:depth])
        if any(os.path.lexists(os.path.join(below, mark)) for mark in MARKS):
            return ""
    return name


def trains_into(argv: tuple[str, ...], cwd: str, place: str) -> bool:
    """Whether a command line is a training program's that names this directory, or has it by default.

    Args:
        argv: its words.
        cwd: where relative words begin; empty when it cannot be told.
        place: the results directory, links resolved.
    """
    program = program_of(argv, cwd)
    if not program:
        return False
    flag = ""
    for word in argv[1:]:
        name, equals, value = word.partition("=") if word.startswith("-") else (flag, "=", word)
        if equals and not _READS.search(name) and _is_same(value, cwd, place):
            return True
        flag = word if word.startswith("-") and not equals else ""
    default = _DEFAULT.search(program)
    if default is None or any(word.startswith(("--out", "-o")) for word in argv):
        return False
    return _is_same(f"results/kssm_{default[1] or default[2]}", cwd, place)


def _is_same(word: str, cwd: str, place: str) -> bool:
    if not word or (not cwd and not os.path.isabs(word)):
        return False
    try:
        return os.path.realpath(os.path.join(cwd, word)) == place
    except (OSError, ValueError):
        return False
