"""`solorun recover DIR`: names what is wrong, shows evidence and plan, and carries it out when told to."""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
from pathlib import Path
from typing import Any

from solorun import recover
from solorun.claimants import Claimant
from solorun.cli.places import current_settings
from solorun.cli.render import typed
from solorun.errors import BadUsage, Held, Refused, SolorunError, StillRunning
from solorun.process import signal_name
from solorun.recover import (
    Ask,
    Blocked,
    Clear,
    Force,
    Outcome,
    Policy,
    Prove,
    PutAside,
    Recovered,
    Step,
    StillAlive,
    Wait,
)
from solorun.scenario import (
    NAMES,
    AbandonedContainer,
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
    diagnose,
)
from solorun.status import wall_clock
from solorun.torn import Damaged
from solorun.wording import ago, command_line, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="say what is wrong and what would be done, no more")
    parser.add_argument("--kill", action="store_true", help="what does not end when asked gets TERM, then KILL")
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where there is no terminal")
    parser.add_argument(
        "--grace", type=float, metavar="S", help="seconds to wait after asking (default 60 for a hung run, else 30)"
    )
    parser.add_argument("--json", action="store_true", help="for programs; needs --yes or --dry-run")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Recover the directory; 0 when it is free, or needs nothing; 4 when the plan was only shown."""
    grace = arguments.grace
    if grace is not None and (not math.isfinite(grace) or grace < 0):
        raise BadUsage("--grace counts seconds, 0 or more", "write, for example, --grace 120")
    settings = current_settings()
    directory = Path(arguments.directory)
    policy = Policy(
        hung_s=settings.grace_s if grace is None else grace,
        fight_s=min(recover.FIGHT_S, settings.grace_s) if grace is None else grace,
        kill=arguments.kill,
    )
    facts = recover.look(directory, wall_clock(), settings)
    found = diagnose(facts)
    files = recover.spoiled(directory, found, facts.files)
    steps = recover.plan(found, policy, files)
    if not arguments.json:
        print("\n".join(_told(directory, found, steps)), flush=True)
    if isinstance(found, OutOfReach):
        raise Refused(f"{typed(directory)}: {found.reason}", found.next_step or f"ls -la {typed(directory)}")
    if not steps or arguments.dry_run:
        if arguments.json:
            _print_json(directory, found, steps, None)
        return 4 if steps else 0
    if not _may(arguments, directory, found):
        print("nothing was changed")
        return 4
    again = diagnose(recover.look(directory, wall_clock(), settings))
    if _who(again) != _who(found):
        raise StillRunning(
            f"{typed(directory)}: it changed meanwhile: {NAMES[type(again)]}", "look again: " + _again(directory)
        )
    outcome = recover.apply(directory, again, policy, wall_clock, tell=_tell)
    if arguments.json:
        _print_json(directory, again, steps, outcome)
    return _finish(directory, again, policy, outcome, quiet=arguments.json)


def _again(directory: Path) -> str:
    return f"solorun recover {typed(directory)}"


def _who(found: Scenario) -> tuple[object, ...]:
    """What must be the same before and after a person thought about the plan."""
    return (type(found), *(one.leader for one in _claimants(found)))


def _may(arguments: argparse.Namespace, directory: Path, found: Scenario) -> bool:
    if arguments.yes:
        return True
    if arguments.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadUsage(
            f"{typed(directory)}: nothing was changed; without a terminal it takes --yes",
            f"read the plan, then: {_again(directory)} --yes",
        )
    grave = isinstance(found, AbandonedContainer)
    try:
        answer = input("is that container gone? type yes to clear: " if grave else "go on? [y/N] ").strip().lower()
    except EOFError:
        print()
        return False
    return answer == "yes" or (answer == "y" and not grave)


def _finish(directory: Path, found: Scenario, policy: Policy, outcome: Outcome, *, quiet: bool) -> int:
    where = typed(directory)
    match outcome:
        case StillAlive(pids):
            raise StillRunning(*_still(where, found, policy, pids))
        case Blocked(reason):
            raise _as_code(reason)
        case Recovered(aside, files, taken_by) if not quiet:
            for line in _put_aside(aside, files):
                print(line)
            if taken_by is None:
                print(f"{where}: free; a start gets in (proven)")
            else:
                print(f"{where}: free, and a start that had waited is in already (PID {taken_by})")
    return 0


def _still(where: str, found: Scenario, policy: Policy, pids: tuple[int, ...]) -> tuple[str, str]:
    who = ", ".join(map(str, pids))
    what = f"{where}: PID {who} still live; nothing was cleared"
    if policy.kill:
        return (
            what,
            f"a process in state D waits for its disk or device: ps -o pid,stat,wchan,args -p {who.replace(' ', '')}",
        )
    if isinstance(found, HungRun) and not found.certain:
        what += ". It is not killed unasked: it still does something, and a long step looks the same"
    return what, f"wait longer, or end it hard: solorun recover {where} --kill"


def _as_code(reason: SolorunError) -> SolorunError:
    """What still holds the directory still runs: exit 5, not the 3 of a start."""
    return StillRunning(reason.what, reason.next_step, reason.evidence) if isinstance(reason, Held) else reason


def _told(directory: Path, found: Scenario, steps: tuple[Step, ...]) -> list[str]:
    lines = _wrapped(f"{typed(directory)}: ", _headline(found), "  ")
    for fact in _evidence(found):
        lines += _wrapped("  ", fact, "    ")
    if steps:
        lines.append("plan:")
        for number, step in enumerate(steps, 1):
            lines += _wrapped(f"  {number}. ", _words(step), "     ")
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
        case TornFiles():
            return "TORN FILES: no run and no lock, but files that no run should read"
        case OutOfReach():
            return "OUT OF REACH: nothing is touched"


def _claimants(found: Scenario) -> tuple[Claimant, ...]:
    match found:
        case Fighting(claimants):
            return claimants
        case HungRun(claimant=one) | OrphanedWorkers(one) | Unguarded(one):
            return (one,)
        case _:
            return ()


def _evidence(found: Scenario) -> list[str]:
    match found:
        case StaleLock(proof):
            lines = [proof]
        case HungRun(proof=proof):
            lines = [proof]
        case AbandonedContainer(proofs=proofs) | OutOfReach(proofs=proofs):
            lines = list(proofs)
        case _:
            lines = []
    for one in _claimants(found):
        more = f", {len(one.members)} processes" if len(one.members) > 1 else ""
        kind = f"run {one.run_id}" if one.run_id else "old-style or unknown"
        lines.append(f"PID {one.leader.pid} of {one.user or 'unknown'}, {kind}{more}: {command_line(one.argv)}")
        lines += [f"  {fact}" for fact in one.evidence]
    return lines


def _words(step: Step) -> str:
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


def _put_aside(aside: Path | None, files: tuple[Damaged, ...]) -> list[str]:
    if aside is None:
        return []
    return [f"put aside in {typed(aside)}:", *(f"  {printable(file.name)}: {file.why}" for file in files)]


def _print_json(directory: Path, found: Scenario, steps: tuple[Step, ...], outcome: Outcome | None) -> None:
    done = outcome if isinstance(outcome, Recovered) else None
    facts: dict[str, Any] = {
        "schema": 1,
        "directory": str(directory),
        "scenario": NAMES[type(found)],
        "evidence": _evidence(found),
        "claimants": [_claimant_row(one) for one in _claimants(found)],
        "plan": [_words(step) for step in steps],
        "done": done is not None,
        "still_running": list(outcome.pids) if isinstance(outcome, StillAlive) else [],
        "quarantine": str(done.aside) if done and done.aside else None,
        "quarantined": [{"name": file.name, "why": file.why} for file in done.files] if done else [],
        "taken_by": done.taken_by if done else None,
    }
    print(json.dumps(facts, indent=1))


def _claimant_row(one: Claimant) -> dict[str, Any]:
    return {
        "pid": one.leader.pid,
        "pids": [member.pid for member in one.members],
        "run_id": one.run_id or None,
        "user": one.user,
        "command": list(one.argv),
        "writes": list(one.files),
        "evidence": list(one.evidence),
    }


def _tell(line: str) -> None:
    print(f"solorun: {line}", file=sys.stderr, flush=True)
