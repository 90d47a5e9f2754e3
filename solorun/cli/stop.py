"""`solorun stop DIR`: ask, wait, prove; with --kill, escalate."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path

from solorun.cli.render import typed
from solorun.errors import BadUsage, StillRunning, directory_problem
from solorun.process import signal_name
from solorun.status import wall_clock
from solorun.stop import Killed, Stopped, StopPolicy, WasNotRunning, stop
from solorun.waiting import call_off
from solorun.wording import ago


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--grace", type=float, default=60.0, metavar="S", help="seconds to wait (default 60)")
    parser.add_argument("--kill", action="store_true", help="after the grace: TERM, then KILL, the whole run")
    parser.add_argument(
        "--waiting", nargs="?", type=int, const=0, metavar="PID",
        help="call off the starts that wait for DIR, or the one with this PID; the run goes on",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Stop the run; 0 when it is proven to have ended."""
    if not math.isfinite(arguments.grace) or arguments.grace < 0:
        raise BadUsage("--grace counts seconds, 0 or more", "write, for example, --grace 120")
    directory = Path(arguments.directory)
    if arguments.waiting is not None:
        return _call_off(directory, arguments.waiting or None)
    result = stop(directory, StopPolicy(arguments.grace, arguments.kill), tell=_tell)
    where = shlex.quote(str(directory))
    match result:
        case WasNotRunning():
            print(f"{where}: no run to stop")
        case Stopped(after_s, step):
            at = "" if step is None else f" at step {step}"
            print(f"{where}: stopped{at} after {after_s:.1f} s")
        case Killed(after_s, number):
            print(f"{where}: killed with {signal_name(number)} after {after_s:.1f} s; every process of it is dead")
        case _:
            pids = ", ".join(map(str, result.pids))
            raise StillRunning(
                f"{where}: still running after {arguments.grace:g} s, phase {result.phase}, PID {pids}",
                f"wait longer, or end it hard: solorun stop --kill {where}",
            )
    return 0


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


def _tell(line: str) -> None:
    print(f"solorun: {line}", file=sys.stderr, flush=True)
