"""What is wrong with a results directory: the scenarios of a recovery, and the verdict that names one. All pure."""

from __future__ import annotations

from collections.abc import Mapping

from solorun.frozen import dataclass
from solorun.grouping import Claimant
from solorun.owner import Foreign as OwnedElsewhere
from solorun.owner import Here, Owner, Unknown, Verdict
from solorun.runstate import (
    Contested,
    Elsewhere,
    Hung,
    Idle,
    Left,
    Orphaned,
    Running,
    RunState,
    Silent,
    Unreadable,
    detail,
)
from solorun.torn import Damaged
from solorun.wording import ago, ask_to_clear, command_line, shell_word

QUIET_S = 600.0
"""A run that told of itself within this time lives, whatever is said of its host."""


@dataclass(frozen=True, slots=True)
class NothingToDo:
    """No run, no lock, no torn file."""


@dataclass(frozen=True, slots=True)
class Healthy:
    """One run holds the directory and moves."""

    owner: Owner


@dataclass(frozen=True, slots=True)
class StaleLock:
    """A lock whose owner is proven dead."""

    proof: str


@dataclass(frozen=True, slots=True)
class HungRun:
    """One run holds the directory and does not move.

    Args:
        claimant: it.
        proof: what was seen.
        certain: False for a run that makes no progress but still does something: a long step looks the same.
    """

    claimant: Claimant
    proof: str
    certain: bool


@dataclass(frozen=True, slots=True)
class Fighting:
    """Several runs, or strays, work in the directory at once."""

    claimants: tuple[Claimant, ...]


@dataclass(frozen=True, slots=True)
class OrphanedWorkers:
    """The run is over, and processes of it live."""

    claimant: Claimant


@dataclass(frozen=True, slots=True)
class Unguarded:
    """One process trains here without the lock, so that the next start would fight it."""

    claimant: Claimant


@dataclass(frozen=True, slots=True)
class AbandonedContainer:
    """The record of a container that is gone: the same kernel, and nobody holds the kernel's lock."""

    owner: Owner
    proofs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AbandonedHost:
    """The record of a host that is gone for good. A person says so: nothing contradicts it, and nothing proves it."""

    owner: Owner
    proofs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TornFiles:
    """No run and no lock, but files that no run should read."""

    files: tuple[Damaged, ...]


@dataclass(frozen=True, slots=True)
class OutOfReach:
    """Its owner cannot be judged, or not be signalled, from here. Unreachable is never dead."""

    reason: str
    next_step: str
    proofs: tuple[str, ...] = ()


Scenario = (
    NothingToDo
    | Healthy
    | StaleLock
    | HungRun
    | Fighting
    | OrphanedWorkers
    | Unguarded
    | AbandonedContainer
    | AbandonedHost
    | TornFiles
    | OutOfReach
)

NAMES: Mapping[type[Scenario], str] = {
    NothingToDo: "nothing to do", Healthy: "healthy", StaleLock: "stale lock", HungRun: "hung run",
    Fighting: "fighting", OrphanedWorkers: "orphaned workers", Unguarded: "unguarded run",
    AbandonedContainer: "abandoned container", AbandonedHost: "abandoned host", TornFiles: "torn files",
    OutOfReach: "out of reach",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen in and around one directory.

    Args:
        state: as `solorun status` names it.
        verdict: who holds it by label and record.
        claimants: who works in it.
        files: torn ones.
        is_locked: whether some process holds the kernel's lock; told where nobody does by label and record.
        disk: kind of file system whose locks may be another kernel's; empty for a local one.
        untouchable: users of claimants that the caller may not signal.
        here: the place that this was seen from.
    """

    state: RunState
    verdict: Verdict
    claimants: tuple[Claimant, ...]
    files: tuple[Damaged, ...]
    is_locked: bool
    disk: str
    untouchable: tuple[str, ...]
    here: Here


def diagnose(facts: Facts, gone: str = "") -> Scenario:
    """Name the scenario that the facts show.

    Args:
        facts: what was seen.
        gone: a host that is gone for good, as a person says; empty where nothing was said.
    """
    verdict = facts.verdict
    if isinstance(verdict, OwnedElsewhere):
        return _elsewhere(facts, verdict, gone)
    if gone:
        return OutOfReach(f"its lock does not tell of host {gone}", "leave --gone-host out")
    if isinstance(verdict, Unknown):
        return OutOfReach(verdict.reason, "")
    if isinstance(facts.state, Unreadable):
        return OutOfReach(facts.state.reason, "look again in a moment")
    if facts.untouchable:
        users = ", ".join(facts.untouchable)
        proofs = _of_whom(facts)
        reason = f"processes of {users} work in it, and the system does not let you signal them"
        return OutOfReach(reason, f"ask {users}, or use an account that may", proofs)
    if len(facts.claimants) > 1 and not all(one.tied for one in facts.claimants):
        return _untied(next(one for one in facts.claimants if not one.tied))
    if len(facts.claimants) > 1:
        return Fighting(facts.claimants)
    return _one_claimant(facts, facts.claimants[0]) if facts.claimants else _no_claimant(facts)


def _of_whom(facts: Facts) -> tuple[str, ...]:
    """The evidence of every process, each sentence with its PID."""
    return tuple(
        clause if clause.startswith("PID ") else f"PID {one.leader.pid}: {clause}"
        for one in facts.claimants
        for clause in one.evidence
    )


def _elsewhere(facts: Facts, verdict: OwnedElsewhere, gone: str) -> Scenario:
    owner = verdict.owner
    place = owner.process.here
    if not facts.here.boot or place.boot != facts.here.boot:
        return _on_another_host(facts, owner, verdict.reason, gone)
    if facts.claimants:
        reason = "its run lives in a container of this machine"
        return OutOfReach(reason, "end it from within its container", _of_whom(facts))
    if facts.disk:
        reason = f"{verdict.reason}, and on a {facts.disk} file system the kernel's lock proves nothing"
        return _on_another_host(facts, owner, reason, gone)
    if facts.is_locked:
        reason = "its run lives in another PID namespace (container) of this machine: the kernel's lock is held"
        return OutOfReach(reason, "end it from within its container")
    return AbandonedContainer(
        owner,
        (
            f"run {owner.run_id} was started in another PID namespace (container) of host {place.host}",
            "this is the same boot of the same kernel, and the directory is on a local disk",
            "nobody holds the kernel's lock on the directory, in any namespace: no process of the run is left",
        ),
    )


def _on_another_host(facts: Facts, owner: Owner, reason: str, gone: str) -> Scenario:
    """A host that nobody calls gone may live; one that does something, or whose lock is held, does."""
    host = owner.process.here.host
    ask_there = f"ask on host {host}, where its PID means something"
    if gone != host:
        return OutOfReach(reason, f"{ask_there}; if that host is gone for good, add --gone-host {shell_word(host)}")
    if facts.claimants:
        reason = f"its record tells of host {host}, but processes here work in it"
        return OutOfReach(reason, "end them first, each by its PID", _of_whom(facts))
    if facts.is_locked:
        return OutOfReach(f"host {host} is not gone: a process holds the kernel's lock on it", ask_there)
    seen = facts.state.seen_s if isinstance(facts.state, Elsewhere) else None
    if seen is not None and seen < QUIET_S:
        return OutOfReach(f"host {host} is not gone: its run told of itself {ago(seen)} ago", ask_there)
    sign = "it never told how far it was" if seen is None else f"it told of itself last {ago(seen)} ago"
    return AbandonedHost(
        owner,
        (
            f"run {owner.run_id} was started on host {host}; {sign}",
            "no process here works in it, and nobody holds the kernel's lock, as far as this file system tells",
            f"that host {host} is gone for good is your word alone: if it lives, two runs will write here at once",
        ),
    )


def _untied(claimant: Claimant) -> OutOfReach:
    pid = claimant.leader.pid
    return OutOfReach(
        f"training.lock names the live PID {pid}, and nothing else ties that process to the directory",
        f"look at it: ps -fp {pid}   if it does train here: solorun stop, which asks whom the label names",
        (f"PID {pid} of {claimant.user}: {command_line(claimant.argv)}",),
    )


def _one_claimant(facts: Facts, claimant: Claimant) -> Scenario:
    match facts.state:
        case _ if not claimant.tied:
            return _untied(claimant)
        case Running(owner=owner):
            return Healthy(owner)
        case Hung(proof=proof):
            return HungRun(claimant, proof, certain=True)
        case Silent(evidence=text):
            return HungRun(claimant, text, certain=False)
        case Contested():  # two PIDs of one tree: a launcher hands over to its trainer
            return OutOfReach("one run is handing the directory over within itself", "look again in a moment")
        case Orphaned():
            return OrphanedWorkers(claimant)
        case Left() if claimant.left:
            return OrphanedWorkers(claimant)
        case _:
            return Unguarded(claimant)


def _no_claimant(facts: Facts) -> Scenario:
    match facts.state:
        case Left(kept_by=user) if user:
            return OutOfReach(detail(facts.state), ask_to_clear(user))
        case Left(proof=proof):
            return StaleLock(proof) if not facts.is_locked else _unseen_holder()
        case Idle() if facts.is_locked:
            return _unseen_holder()
        case Idle():
            return TornFiles(facts.files) if facts.files else NothingToDo()
        case _:
            reason = "you are within the run that holds it: a recovery would end itself"
            return OutOfReach(reason, "type it in another terminal")


def _unseen_holder() -> OutOfReach:
    reason = "a process that cannot be seen from here holds the kernel's lock on it"
    return OutOfReach(reason, "look again in a moment; else it lives in a container, or is another user's")
