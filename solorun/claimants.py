"""Who works in a results directory: every live process that trains into it, ours, old-style or unknown, with why.

Readers are not counted: what has a file open only to read it, or merely stands in the directory, harms nothing.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from solorun import process
from solorun.label import is_copy, look_at, read_label, read_owner
from solorun.neighbours import program_of
from solorun.owner import Held, Label, Owner, ProcessId
from solorun.process.census import Seen
from solorun.record import read_record
from solorun.rundir import ARCHIVE, MARKS, WAITING

_RELAYS = frozenset({"tee", "ts", "script", "rotatelogs", "multilog", "logger", "cat"})
"""Programs that only carry another one's output into a file, and end when it ends."""

_DEFAULT = re.compile(r"(?:^|/)train_kssm_(v\d+)\w*\.py$|^kssm train (v\d+)$", re.ASCII)
"""The procedure's trainers, whose default is results/kssm_VERSION below their working directory."""

_READS = re.compile(r"resume|init|from|load|teacher|pretrain|data|eval|compare", re.IGNORECASE)
_LABEL_ONLY = "training.lock names it"


@dataclass(frozen=True, slots=True)
class Marks:
    """What one process was caught at in a directory.

    Args:
        why: one clause each, such as "carries run id X".
        files: names of the files that it has open for writing there.
        hears: the signal that asks it politely.
    """

    why: tuple[str, ...]
    files: tuple[str, ...] = ()
    hears: int = signal.SIGINT


@dataclass(frozen=True, slots=True)
class Claimant:
    """One run, or one stray process, that works in a directory, with all that belongs to it.

    Args:
        leader: the training process, or the one that the others descend from.
        members: every live process of it, guards among them.
        guards: those of its members that are supervisors; they end by themselves, last.
        ask: whom to ask to end, and with which signal.
        run_id: that it carries; empty for an old-style trainer.
        user: login name.
        argv: command line of the leader.
        born: seconds since the epoch.
        files: names of the files that it has open for writing in the directory.
        evidence: what ties it to the directory, a sentence each.
        tied: whether anything but the bare number in the label ties it to the directory.
    """

    leader: ProcessId
    members: tuple[ProcessId, ...]
    guards: frozenset[ProcessId]
    ask: tuple[tuple[ProcessId, int], ...]
    run_id: str
    user: str
    argv: tuple[str, ...]
    born: float
    files: tuple[str, ...]
    evidence: tuple[str, ...]
    tied: bool


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
        last, facts = read_record(fd), os.fstat(fd)
        named = _named(fd, owner)
    finally:
        os.close(fd)
    everyone = process.census()
    mine = _caller(everyone)
    run_ids = frozenset(filter(None, (owner.run_id if owner else "", last.run_id if last else "")))
    for holder in process.flock_holders(facts.st_dev, facts.st_ino):
        named.setdefault(holder.pid, []).append("it holds the kernel's lock on the directory")
    place = os.path.realpath(directory)
    seen = [one for one in everyone if one.row.pid not in mine and not _is_our_pipe(one)]
    marks = {one.row.pid: marked for one in seen if (marked := _marks(one, place, named, run_ids)) is not None}
    return group(everyone, marks, owner, mine, now)


def _named(fd: int, owner: Owner | None) -> dict[int, list[str]]:
    """Why label and record speak of a PID."""
    named: dict[int, list[str]] = {}
    verdict, label = look_at(fd), read_label(fd)
    held = isinstance(verdict, Held)
    if held and isinstance(label, Label) and label.pid:
        named.setdefault(label.pid, []).append(_LABEL_ONLY)
    if owner is not None and process.is_alive(owner.process) and owner.process.here == process.here():
        named.setdefault(owner.process.pid, []).append("training.owner.json names it as the training process")
    guard = owner.supervisor if owner else None
    if guard is not None and process.is_alive(guard) and guard.here == process.here():
        named.setdefault(guard.pid, []).append("training.owner.json names it as the guard of the run")
    return named


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
    return _is_relay(one) and process.system.group(one.row.pid) == os.getpgrp()


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


def solorun_verb(argv: tuple[str, ...]) -> str:
    """The verb of a `solorun` command line, "?" when it is ours but names none; empty for any other command."""
    for at, word in enumerate(argv[:5]):
        is_module = word == "solorun" and at > 0 and argv[at - 1] == "-m"
        if is_module or (at < 2 and os.path.basename(word) == "solorun") or word.endswith("/solorun/__main__.py"):
            return next((word for word in argv[at + 1 :] if not word.startswith("-")), "?")
    return ""


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


def group(
    everyone: Iterable[Seen],
    marks: Mapping[int, Marks],
    owner: Owner | None,
    mine: frozenset[int],
    now: float,
) -> tuple[Claimant, ...]:
    """Put the marked processes together to claimants: one tree, or one run id, is one. Pure.

    Args:
        everyone: the process table.
        marks: by PID.
        owner: the record, None when there is none.
        mine: PIDs of the caller's own, which belong to nobody here.
        now: seconds since the epoch.
    """
    table = {one.row.pid: one for one in everyone if one.row.pid not in mine}
    trees: list[set[int]] = []
    for pid in (pid for pid in marks if pid in table):
        bound = _bound(pid, table, marks, owner)
        joined = set().union(bound, *(tree for tree in trees if tree & bound))
        trees = [tree for tree in trees if not tree & bound] + [joined]
    claimants = [_claimant(tree, table, marks, owner, now) for tree in _relays_joined(trees, table)]
    return tuple(sorted(claimants, key=lambda one: (one.born, one.leader.pid)))


def _bound(pid: int, table: Mapping[int, Seen], marks: Mapping[int, Marks], owner: Owner | None) -> set[int]:
    """The marked processes that a marked one belongs to."""
    bound = {pid}
    at = table[pid].row.parent
    while at in table and at not in bound:
        if at in marks:
            bound.add(at)
            break
        at = table[at].row.parent
    run_id = table[pid].run_id
    bound |= {other for other in marks if other in table and run_id and table[other].run_id == run_id}
    if owner is not None:
        recorded = {owner.process, *filter(None, (owner.supervisor,))}
        pids = {one.pid for one in recorded if one.pid in table and table[one.pid].process == one}
        if pid in pids or (run_id and run_id == owner.run_id):
            bound |= pids & marks.keys()
    return bound


def _relays_joined(trees: list[set[int]], table: Mapping[int, Seen]) -> list[set[int]]:
    """A `tee` into the log belongs to the command that it was piped behind: their parent is the same."""
    relays = [tree for tree in trees if all(_is_relay(table[pid]) for pid in tree)]
    rest = [tree for tree in trees if tree not in relays]
    for relay in relays:
        parents = {table[pid].row.parent for pid in relay}
        source = next((tree for tree in rest if parents & {table[pid].row.parent for pid in tree}), None)
        if source is None:
            rest.append(relay)
        else:
            source |= relay
    return rest


def _is_relay(one: Seen) -> bool:
    return os.path.basename(one.row.argv[0]) in _RELAYS


def _claimant(
    tree: set[int], table: Mapping[int, Seen], marks: Mapping[int, Marks], owner: Owner | None, now: float
) -> Claimant:
    roots = [pid for pid in sorted(tree) if table[pid].row.parent not in tree]
    roots = [pid for pid in roots if not _is_relay(table[pid])] or roots
    run_id = next((table[pid].run_id for pid in sorted(tree) if table[pid].run_id), "")
    recorded = (
        owner if owner and owner.process.pid in tree and table[owner.process.pid].process == owner.process else None
    )
    members = _with_descendants(tree, table, run_id)
    guards = {pid for pid in members if solorun_verb(table[pid].row.argv) == "start"}
    if recorded and recorded.supervisor and recorded.supervisor.pid in members:
        guards.add(recorded.supervisor.pid)
    leader = (
        recorded.process.pid if recorded else min(set(roots) - guards or set(roots), key=lambda p: -table[p].row.age_s)
    )
    why = {pid: marks[pid].why for pid in tree}
    return Claimant(
        leader=table[leader].process,
        members=tuple(table[pid].process for pid in sorted(members)),
        guards=frozenset(table[pid].process for pid in guards),
        ask=_ask(recorded, roots, guards, table, marks),
        run_id=run_id or (recorded.run_id if recorded else ""),
        user=table[leader].user,
        argv=table[leader].row.argv,
        born=now - table[leader].row.age_s,
        files=tuple(sorted({name for pid in tree for name in marks[pid].files})),
        evidence=tuple(
            clause if pid == leader else f"PID {pid}: {clause}"
            for pid in sorted(tree, key=lambda pid: (pid != leader, pid))
            for clause in why[pid]
        ),
        tied=any(clause != _LABEL_ONLY for clauses in why.values() for clause in clauses),
    )


def _with_descendants(tree: set[int], table: Mapping[int, Seen], run_id: str) -> set[int]:
    """The processes and all that they started, save what is guarded as a run of its own."""
    children: dict[int, list[int]] = {}
    for pid, one in table.items():
        children.setdefault(one.row.parent, []).append(pid)
    members, front = set(tree), list(tree)
    while front:
        for child in children.get(front.pop(), ()):
            if child not in members and table[child].run_id in ("", run_id):
                members.add(child)
                front.append(child)
    return members


def _ask(
    recorded: Owner | None,
    roots: list[int],
    guards: set[int],
    table: Mapping[int, Seen],
    marks: Mapping[int, Marks],
) -> tuple[tuple[ProcessId, int], ...]:
    """Whom to ask, once each: the one that answers for the whole run, as `solorun stop` asks it."""
    if recorded is not None and recorded.adopted and recorded.run_id:
        return ((recorded.process, signal.SIGTERM),)
    if guards:
        return tuple((table[pid].process, signal.SIGINT) for pid in sorted(guards))
    return tuple((table[pid].process, marks[pid].hears) for pid in roots)
