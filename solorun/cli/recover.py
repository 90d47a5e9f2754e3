"""`solorun recover DIR`: names what is wrong, shows evidence and plan, and carries it out when told to."""

from __future__ import annotations

import argparse
import json
import math
import sys
import termios
from pathlib import Path
from typing import Any

from solorun import recover
from solorun.cli.diagnosis import claimants_of, evidence_of, in_words, told
from solorun.cli.places import current_settings
from solorun.cli.render import typed
from solorun.errors import BadUsage, Held, Refused, SolorunError, StillRunning
from solorun.grouping import Claimant
from solorun.recover import Blocked, Outcome, Recovered, StillAlive
from solorun.remedy import FIGHT_S, Policy, Step, plan
from solorun.scenario import NAMES, AbandonedContainer, AbandonedHost, HungRun, OutOfReach, Scenario, diagnose
from solorun.status import wall_clock
from solorun.torn import Damaged
from solorun.wording import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="say what is wrong and what would be done, no more")
    parser.add_argument("--kill", action="store_true", help="what does not end when asked gets TERM, then KILL")
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where there is no terminal")
    parser.add_argument(
        "--grace", type=float, metavar="S", help="seconds to wait after asking (default 60 for a hung run, else 30)"
    )
    parser.add_argument(
        "--gone-host", metavar="HOST", default="",
        help="the lock tells of this host, or container, and it is gone for good: clear what it left",
    )  # fmt: skip
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
        fight_s=min(FIGHT_S, settings.grace_s) if grace is None else grace,
        kill=arguments.kill,
    )
    facts = recover.look(directory, wall_clock(), settings)
    found = diagnose(facts, arguments.gone_host)
    files = recover.spoiled(directory, found, facts.files)
    steps = plan(found, policy, files)
    if not arguments.json:
        print("\n".join(told(directory, found, steps)), flush=True)
    if isinstance(found, OutOfReach):
        if arguments.json:
            _print_json(directory, found, steps, None)
        raise Refused(f"{typed(directory)}: {found.reason}", found.next_step or f"ls -la {typed(directory)}")
    if not steps or arguments.dry_run:
        if arguments.json:
            _print_json(directory, found, steps, None)
        return 4 if steps else 0
    if not _may(arguments, directory, found):
        print("nothing was changed")
        return 4
    again = diagnose(recover.look(directory, wall_clock(), settings), arguments.gone_host)
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
    return (type(found), *(one.leader for one in claimants_of(found)))


def _may(arguments: argparse.Namespace, directory: Path, found: Scenario) -> bool:
    if arguments.yes:
        return True
    if arguments.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadUsage(
            f"{typed(directory)}: nothing was changed; without a terminal it takes --yes",
            f"read the plan, then: {_again(directory)} --yes",
        )
    grave = {AbandonedContainer: "is that container gone?", AbandonedHost: "is that host gone for good?"}
    question = grave.get(type(found))
    try:
        # What was typed before the plan could be read is no answer to it.
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
        answer = input(f"{question} type yes to clear: " if question else "go on? [y/N] ").strip().lower()
    except EOFError:
        print()
        return False
    return answer == "yes" or (answer == "y" and not question)


def _finish(directory: Path, found: Scenario, policy: Policy, outcome: Outcome, *, quiet: bool) -> int:
    where = typed(directory)
    match outcome:
        case StillAlive(pids):
            raise StillRunning(*_still(where, found, policy, pids))
        case Blocked(reason):
            raise _as_code(reason)
        case Recovered(aside, files, taken_by, checkpoint) if not quiet:
            for line in _put_aside(aside, files):
                print(line)
            if checkpoint:
                print(f"newest checkpoint: {printable(checkpoint)}")
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
        "evidence": evidence_of(found),
        "claimants": [_claimant_row(one) for one in claimants_of(found)],
        "plan": [in_words(step) for step in steps],
        "done": done is not None,
        "still_running": list(outcome.pids) if isinstance(outcome, StillAlive) else [],
        "quarantine": str(done.aside) if done and done.aside else None,
        "quarantined": [{"name": file.name, "why": file.why} for file in done.files] if done else [],
        "taken_by": done.taken_by if done else None,
        "checkpoint": (done.checkpoint or None) if done else None,
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
