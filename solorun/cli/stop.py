"""`solorun stop DIR`: ask, wait, prove; with --kill, escalate."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from solorun import process
from solorun.cli.places import current_settings
from solorun.cli.render import typed
from solorun.errors import BadUsage, SolorunError, directory_problem, explain
from solorun.errors import StillRunning as NotEnded
from solorun.owner import Alive
from solorun.patience import StopPolicy
from solorun.rundir import CheckpointFile, is_results_directory
from solorun.runstate import Hung, Silent, detail
from solorun.settings import Settings
from solorun.status import examine, wall_clock
from solorun.stop import Kept, Killed, StillRunning, Stopped, StopResult, Unseen, WasNotRunning, stop, what_survives
from solorun.waiting import call_off
from solorun.wording import ago, shell_word

_NAMES = {Stopped: "stopped", WasNotRunning: "not running", Killed: "killed", StillRunning: "still running"}
_STATES = {"T": "suspended (state T)", "t": "held by a debugger (state t)", "D": "waiting for a disk (state D)"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument(
        "--grace", type=float, metavar="S", help="seconds to wait (default 60, or as solorun.toml says)"
    )
    parser.add_argument("--kill", action="store_true", help="after the grace: TERM, then KILL, the whole run")
    parser.add_argument("--json", action="store_true", help="for programs; the schema is frozen")
    parser.add_argument(
        "--waiting", nargs="?", type=int, const=0, metavar="PID",
        help="call off the starts that wait for DIR, or the one with this PID; the run goes on",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Stop the run; 0 when it is proven to have ended."""
    settings = _settings()
    grace = settings.grace_s if arguments.grace is None else arguments.grace
    if not math.isfinite(grace) or grace < 0:
        raise BadUsage("--grace counts seconds, 0 or more", "write, for example, --grace 120")
    directory = Path(arguments.directory)
    if arguments.waiting is not None:
        return _call_off(directory, arguments.waiting or None)
    where = shell_word(directory)
    try:
        result = stop(directory, StopPolicy(grace, arguments.kill, settings.save_extension_s), tell=_tell)
    except KeyboardInterrupt:
        _tell(f"no longer waiting; the run was asked and may still end by itself: solorun status {where}")
        raise
    if arguments.json:
        print(json.dumps(as_row(result), indent=1), flush=True)
    elif not isinstance(result, StillRunning):
        print(f"{where}: {_words(result)}")
        if isinstance(result, WasNotRunning) and not is_results_directory(set(os.listdir(directory))):
            print("  and none was ever in this directory; those there are: solorun status")
    if isinstance(result, StillRunning):
        raise _not_ended(directory, where, result, settings, killed=arguments.kill)
    return 0


def as_row(result: StopResult) -> dict[str, Any]:
    """What `--json` prints; the keys are frozen, new ones may be added."""
    checkpoint: Kept = getattr(result, "checkpoint", None)
    kept = checkpoint if isinstance(checkpoint, CheckpointFile) else None
    return {
        "schema": 1,
        "result": _NAMES[type(result)],
        "after_s": getattr(result, "after_s", None),
        "step": getattr(result, "step", None),
        "checkpoint": kept and {"file": kept.name, "step": kept.step, "written": kept.written},
        "checkpoint_unknown": checkpoint.why if isinstance(checkpoint, Unseen) else None,
        "pids": list(getattr(result, "pids", ())),
        "phase": getattr(result, "phase", None),
    }


def _words(result: StopResult) -> str:
    match result:
        case Stopped(after_s, step, checkpoint):
            at = "" if step is None else f" at step {step}"
            return f"stopped{at} after {after_s:.1f} s\n  {what_survives(step, checkpoint)}"
        case Killed(after_s, number, checkpoint, step):
            how = f"ended with {process.signal_name(number)} after {after_s:.1f} s; every process of it is dead"
            return f"{how}\n  {what_survives(step, checkpoint)}"
        case _:
            return "no run to stop"


def _not_ended(directory: Path, where: str, result: StillRunning, settings: Settings, *, killed: bool) -> SolorunError:
    pids = ", ".join(map(str, result.pids))
    what = f"{where}: still running after {result.after_s:.1f} s, phase {result.phase}, PID {pids}"
    now = wall_clock()
    state, _ = examine(directory, now, settings)
    evidence = [detail(state)] if isinstance(state, Silent | Hung) else []
    for pid in result.pids[:8]:
        seen = process.probe(pid)
        if isinstance(seen, Alive) and seen.state in _STATES:
            evidence.append(f"PID {pid} is {_STATES[seen.state]}")
    if killed and 1 in result.pids:  # the kernel spares the first process of a PID namespace what is sent from inside
        evidence.append("PID 1 of a container cannot be killed from inside it; its directory stays held")
        return NotEnded(what, f"end its container from outside, then there: solorun recover {where}", tuple(evidence))
    if killed:
        evidence.append("it was sent SIGKILL, and dies as soon as the kernel lets go of it; its directory stays held")
        return NotEnded(what, f"look again: solorun stop {where}", tuple(evidence))
    evidence.append("it was asked, and nothing else was done to it; it may still end by itself")
    if isinstance(result.checkpoint, Unseen):
        evidence.append(what_survives(result.step, result.checkpoint))
    elif result.checkpoint is not None:
        age = ago(now - result.checkpoint.written)
        evidence.append(f"a kill would leave {result.checkpoint.name}, written {age} ago")
    step = f"wait longer, or end it hard: solorun stop --kill {where}"
    return NotEnded(what, step, tuple(evidence))


def _call_off(directory: Path, pid: int | None) -> int:
    try:
        called = call_off(directory, pid)
    except OSError as error:
        raise directory_problem(error, "call off the starts that wait for", directory) from None
    for waiter in called:
        since = ago(wall_clock() - waiter.since)
        print(f"called off: PID {waiter.process.pid} of {waiter.user}, which had waited for {since}")
    if not called:
        print(f"{typed(directory)}: nobody waits" + (f" with PID {pid}" if pid else ""))
    return 0


def _settings() -> Settings:
    """The settings in force; a mistake in them must not keep a run from being stopped."""
    try:
        return current_settings()
    except (SolorunError, OSError) as error:
        said = explain(error) if isinstance(error, SolorunError) else str(error)
        _tell(f"{said.splitlines()[0]}; going on with the defaults")
        return Settings()


def _tell(line: str) -> None:
    print(f"solorun: {line}", file=sys.stderr, flush=True)
