"""A scenario, its evidence and its plan in words."""

from __future__ import annotations

import textwrap
from pathlib import Path

from solorun.cli.render import typed
from solorun.grouping import Claimant
from solorun.process import signal_name
from solorun.remedy import Ask, Clear, Force, Prove, PutAside, Step, Wait
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
from solorun.wording import ago, command_line, printable


def told(directory: Path, found: Scenario, steps: tuple[Step, ...]) -> list[str]:
    """Scenario, evidence and numbered plan, at 80 columns."""
    lines = _wrapped(f"{typed(directory)}: ", _headline(found), "  ")
    for fact in evidence_of(found):
        lines += _wrapped("  ", fact, "    ")
    if steps:
        lines.append("plan:")
        for number, step in enumerate(steps, 1):
            lines += _wrapped(f"  {number}. ", in_words(step), "     ")
    return lines


def _wrapped(head: str, text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        head + printable(text), 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _headline(found: Scenario) -> str:
    match found:
        case NothingToDo():
            return "nothing to do: no run, no lock, no torn file"
        case Healthy(owner):
            return f"nothing to do: a healthy run holds it, PID {owner.process.pid} of {owner.user or 'unknown'}"
        case StaleLock():
            return "STALE LOCK: it was left behind, and blocks starts of old-style trainers"
        case HungRun(certain=True):
            return "HUNG RUN: it is there, and does not move"
        case HungRun():
            return "NO PROGRESS, STILL BUSY: a long step and an endless loop look alike from here"
        case Fighting(claimants):
            return f"FIGHTING: {len(claimants)} runs work in it at once"
        case OrphanedWorkers():
            return "ORPHANED WORKERS: their run is over, and they may still write"
        case Unguarded():
            return "UNGUARDED RUN: it trains here without the lock, and the next start would fight it"
        case AbandonedContainer():
            return "ABANDONED CONTAINER: the lock of a container that is gone"
        case AbandonedHost(owner):
            return f"ABANDONED HOST: the lock of host {owner.process.here.host}, which is gone for good, as you say"
        case TornFiles():
            return "TORN FILES: no run and no lock, but files that no run should read"
        case OutOfReach():
            return "OUT OF REACH: nothing is touched"


def claimants_of(found: Scenario) -> tuple[Claimant, ...]:
    """Whom a scenario is about."""
    match found:
        case Fighting(claimants):
            return claimants
        case HungRun(claimant=one) | OrphanedWorkers(one) | Unguarded(one):
            return (one,)
        case _:
            return ()


def evidence_of(found: Scenario) -> list[str]:
    """What was seen, a sentence each."""
    match found:
        case StaleLock(proof):
            lines = [proof]
        case HungRun(proof=proof):
            lines = [proof]
        case AbandonedContainer(proofs=proofs) | AbandonedHost(proofs=proofs) | OutOfReach(proofs=proofs):
            lines = list(proofs)
        case _:
            lines = []
    for one in claimants_of(found):
        more = f", {len(one.members)} processes" if len(one.members) > 1 else ""
        kind = f"run {one.run_id}" if one.run_id else "old-style or unknown"
        lines.append(f"PID {one.leader.pid} of {one.user or 'unknown'}, {kind}{more}: {command_line(one.argv)}")
        lines += [f"  {fact}" for fact in one.evidence]
    return lines


def in_words(step: Step) -> str:
    """A step as a person reads it."""
    match step:
        case Ask(claimants):
            asked = ", ".join(f"PID {p.pid} ({signal_name(n)})" for one in claimants for p, n in one.ask)
            return f"ask to stop: {asked}"
        case Wait(seconds):
            return f"wait up to {ago(seconds)} for the end, then look again"
        case Force(kill=True):
            return "what still lives gets SIGTERM, then SIGKILL: every process of it"
        case Force(term=True):
            return "what still lives gets SIGTERM; what lives on even then is told (--kill ends it)"
        case Force():
            return "if any still lives: stop here and say so (--kill ends it)"
        case Clear(proof):
            return f"clear what is left of the lock: {proof}"
        case PutAside(files):
            return "move into archive/quarantine-...: " + "; ".join(f"{file.name} ({file.why})" for file in files)
        case Prove():
            return "prove that the next start gets in"
