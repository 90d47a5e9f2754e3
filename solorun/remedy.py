"""What to do about a scenario, step by step, and which files a fight has spoiled. All pure."""

from __future__ import annotations

from collections.abc import Mapping

from solorun.frozen import dataclass
from solorun.grouping import Claimant
from solorun.rundir import EVENTS, LABEL, LOG, METRICS, OUTPUT, OWNER, PID, PROGRESS, RUN
from solorun.scenario import (
    AbandonedContainer,
    AbandonedHost,
    Fighting,
    Healthy,
    HungRun,
    NothingToDo,
    OrphanedWorkers,
    OutOfReach,
    Scenario,
    StaleLock,
    TornFiles,
    Unguarded,
)
from solorun.torn import Damaged

FIGHT_S = 30.0
"""How long processes that fight over a directory, or are left over, get to end by themselves."""


_NEVER_MIXED = frozenset({LABEL, OWNER, PID, RUN, EVENTS, PROGRESS})
_APPENDED = (LOG, OUTPUT, METRICS)


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask these to end, once each, with their checkpoint."""

    claimants: tuple[Claimant, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for their end, then look again."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Force:
    """What still lives then gets SIGTERM, and SIGKILL where `kill` says so; else it is told, and left alone."""

    kill: bool
    term: bool


@dataclass(frozen=True, slots=True)
class Clear:
    """Take the left label and record away."""

    proof: str


@dataclass(frozen=True, slots=True)
class PutAside:
    """Move torn and mixed files into the archive; the list is looked over again when all writers have ended."""

    files: tuple[Damaged, ...]


@dataclass(frozen=True, slots=True)
class Prove:
    """Enter and leave as a start would."""


Step = Ask | Wait | Force | Clear | PutAside | Prove


@dataclass(frozen=True, slots=True)
class Policy:
    """How far to go.

    Args:
        hung_s: seconds that a hung run gets to end by itself.
        fight_s: seconds that everything else gets.
        kill: whether SIGTERM and SIGKILL may follow.
    """

    hung_s: float = 60.0
    fight_s: float = FIGHT_S
    kill: bool = False


def plan(found: Scenario, policy: Policy, files: tuple[Damaged, ...]) -> tuple[Step, ...]:
    """What to do about a scenario, in order; nothing for one that needs or allows nothing. Pure.

    Args:
        found: the scenario.
        policy: how far to go.
        files: torn and mixed ones, as far as known.
    """
    aside = (PutAside(files),) if files else ()
    match found:
        case NothingToDo() | Healthy() | OutOfReach():
            return ()
        case StaleLock(proof):
            return (Clear(proof), *aside, Prove())
        case TornFiles():
            return (*aside, Prove())
        case AbandonedContainer():
            return (Clear("the container that it tells of is gone"), *aside, Prove())
        case AbandonedHost(owner):
            return (Clear(f"host {owner.process.here.host} is gone for good, as you say"), *aside, Prove())
        case HungRun(claimant):
            ending: tuple[Step, ...] = (Ask((claimant,)), Wait(policy.hung_s), Force(policy.kill, term=policy.kill))
        case Fighting(claimants):
            ending = (Ask(claimants), Wait(policy.fight_s), Force(policy.kill, term=policy.kill))
        case OrphanedWorkers(claimant):
            ending = (Ask((claimant,)), Wait(policy.fight_s), Force(policy.kill, term=True))
        case Unguarded(claimant):
            ending = (Ask((claimant,)), Wait(policy.fight_s), Force(policy.kill, term=policy.kill))
    return (*ending, Clear("their death is proven"), *aside, Prove())


def mixed(claimants: tuple[Claimant, ...], written: Mapping[str, float]) -> tuple[Damaged, ...]:
    """Files that more than one claimant wrote to.

    Args:
        claimants: of the fight.
        written: modification times by file name, seconds since the epoch.
    """
    writers: dict[str, list[int]] = {}
    for one in claimants:
        for name in one.files:
            writers.setdefault(name, []).append(one.leader.pid)
    found = {
        name: f"PIDs {' and '.join(map(str, pids))} wrote to it at once"
        for name, pids in writers.items()
        if len(pids) > 1 and name not in _NEVER_MIXED
    }
    # A trainer that opens its log for each line is never seen with it open.
    fight_began = sorted(one.born for one in claimants)[1] if len(claimants) > 1 else float("inf")
    for name in _APPENDED:
        if name not in writers and written.get(name, 0.0) > fight_began:
            found[name] = "it was written to while they fought"
    return tuple(Damaged(name, why) for name, why in sorted(found.items()))
