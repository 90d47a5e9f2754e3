"""Processes put together to claimants of a directory: which are one run, and whom to ask to end it. All pure."""

from __future__ import annotations

import os
import signal

from solorun.frozen import dataclass, replace
from solorun.owner import Owner, ProcessId
from solorun.process.table import Seen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RELAYS = frozenset({"tee", "ts", "script", "rotatelogs", "multilog", "logger", "cat"})
"""Programs that only carry another one's output into a file, and end when it ends."""

LABEL_ONLY = "training.lock names it"


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
        left: whether it is what a dead trainer, which the label still names, left behind.
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
    left: bool = False


def solorun_verb(argv: tuple[str, ...]) -> str:
    """The verb of a `solorun` command line, "?" when it is ours but names none; empty for any other command."""
    for at, word in enumerate(argv[:5]):
        is_module = word == "solorun" and at > 0 and argv[at - 1] == "-m"
        if is_module or (at < 2 and os.path.basename(word) == "solorun") or word.endswith("/solorun/__main__.py"):
            return next((word for word in argv[at + 1 :] if not word.startswith("-")), "?")
    return ""


def group(
    everyone: Iterable[Seen],
    marks: Mapping[int, Marks],
    owner: Owner | None,
    mine: frozenset[int],
    now: float,
    left: frozenset[int] = frozenset(),
) -> tuple[Claimant, ...]:
    """Put the marked processes together to claimants: one tree, or one run id, is one. Pure.

    Args:
        everyone: the process table.
        marks: by PID.
        owner: the record, None when there is none.
        mine: PIDs of the caller's own, which belong to nobody here.
        now: seconds since the epoch.
        left: marked PIDs of the process group of the dead trainer that the label names: what is left of one run.
    """
    table = {one.row.pid: one for one in everyone if one.row.pid not in mine}
    trees: list[set[int]] = []
    for pid in (pid for pid in marks if pid in table):
        bound = _bound(pid, table, marks, owner) | (left & table.keys() if pid in left else set())
        joined = set().union(bound, *(tree for tree in trees if tree & bound))
        trees = [tree for tree in trees if not tree & bound] + [joined]
    claimants = [
        replace(_claimant(tree, table, marks, owner, now), left=bool(tree & left))
        for tree in _relays_joined(trees, table)
    ]
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
        if pid in pids or (run_id and run_id == owner.run_id) or _is_launched(pid, table, owner.launcher):
            bound |= pids & marks.keys()
    return bound


def _is_launched(pid: int, table: Mapping[int, Seen], launcher: ProcessId | None) -> bool:
    """Whether the launcher that the record names started it: the ranks of one run are siblings."""
    at, seen = pid, set[int]()
    while launcher is not None and at in table and at not in seen:
        if table[at].process == launcher:
            return True
        seen.add(at)
        at = table[at].row.parent
    return False


def _relays_joined(trees: list[set[int]], table: Mapping[int, Seen]) -> list[set[int]]:
    """A `tee` into the log belongs to the command that it was piped behind: their parent is the same."""
    relays = [tree for tree in trees if all(is_relay(table[pid]) for pid in tree)]
    rest = [tree for tree in trees if tree not in relays]
    for relay in relays:
        parents = {table[pid].row.parent for pid in relay}
        source = next((tree for tree in rest if parents & {table[pid].row.parent for pid in tree}), None)
        if source is None:
            rest.append(relay)
        else:
            source |= relay
    return rest


def is_relay(one: Seen) -> bool:
    """Whether a process only carries another one's output."""
    return os.path.basename(one.row.argv[0]) in RELAYS


def _claimant(
    tree: set[int], table: Mapping[int, Seen], marks: Mapping[int, Marks], owner: Owner | None, now: float
) -> Claimant:
    roots = [pid for pid in sorted(tree) if table[pid].row.parent not in tree]
    roots = [pid for pid in roots if not is_relay(table[pid])] or roots
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
        tied=any(clause != LABEL_ONLY for clauses in why.values() for clause in clauses),
    )


def _with_descendants(tree: set[int], table: Mapping[int, Seen], run_id: str) -> set[int]:
    """The processes and all that they started, save what is guarded as a run of its own."""
    children: dict[int, list[int]] = {}
    for pid, one in table.items():
        children.setdefault(one.row.parent, []).append(pid)
    members, front = set(tree), list(tree)
    while front:
        parent = front.pop()
        # A guard has adopted whatever daemons its command left, a tmux server among them, and couriers of its own.
        usual = {run_id} - {""} if solorun_verb(table[parent].row.argv) == "start" else {"", run_id}
        for child in children.get(parent, ()):
            if child not in members and table[child].run_id in usual:
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
