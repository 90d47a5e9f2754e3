"""`solorun start DIR [--background or --tmux] [--wait] -- COMMAND ...`: guard any command."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from solorun.cli.places import current_settings
from solorun.cli.render import typed
from solorun.frozen import replace
from solorun.handshake import Report, Waiting, failure, teller
from solorun.hold import LOCK_VARIABLE
from solorun.launch import OWN_VARIABLES, SOCKET_VARIABLE, LaunchPlan, Mode, TmuxSession, plan_command
from solorun.settings import Settings
from solorun.sharing import SHARE_VARIABLE
from solorun.start import Queued, Started, ended_line, in_background, in_foreground, waiting_line
from solorun.supervisor import Audience


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.usage = "solorun start DIR [--background | --tmux] [--wait] [-- COMMAND [ARGUMENT ...]]"
    parser.epilog = "Without a COMMAND, the one that solorun.toml names for DIR."
    parser.add_argument("directory", metavar="DIR", help="results directory; made if it is missing")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--background", action="store_true", help="go on by itself; output to training.log, nohup.out")
    where.add_argument("--tmux", action="store_true", help="in a tmux session of its own")
    where.add_argument("--pane", metavar="PLACE", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--wait", action="store_true", help="queue behind the run that is there")
    parser.add_argument("--share-accelerator", action="store_true", help="start although another run uses the device")
    parser.add_argument("--json", action="store_true", help="what became of it, for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Start the command; in the foreground its exit status, else 0 when it holds the directory or waits for it."""
    if arguments.background:
        _leave_the_run_around_us()
    settings = current_settings()
    directory = Path(arguments.directory)
    mode: Mode = "background" if arguments.background else "tmux" if arguments.tmux or arguments.pane else "foreground"
    entry = settings.run_entry(directory)
    plan = plan_command(tuple(arguments.command), Path.cwd(), os.environ, mode, entry)
    if arguments.share_accelerator or settings.share_accelerator:
        # The trainer looks for itself, and is told so that it may.
        plan = replace(plan, env={**plan.env, SHARE_VARIABLE: "1"})
    if arguments.pane:
        return _in_pane(plan, directory, settings, arguments)
    turn = _turn(plan, directory, settings, wait=arguments.wait)
    if arguments.background:
        return _report(in_background(plan, directory, settings, turn), directory, None, arguments.json)
    if arguments.tmux:
        from solorun.tmux import start_in_session

        session, what = start_in_session(plan, directory, wait=arguments.wait)
        return _report(what, directory, session, arguments.json)
    reports: list[Report] = []

    def told(report: Report) -> None:
        reports.append(report)
        _tell_waiting(report)

    audience = Audience(sys.stdout.fileno(), told)
    try:
        ended = in_foreground(plan, directory, settings, turn, audience)
    except KeyboardInterrupt:
        if reports and isinstance(reports[-1], Waiting):  # it never came to hold the directory
            _say("called off; nothing was started")
        raise
    _say(ended_line(ended))
    return ended.exit_code


def _leave_the_run_around_us() -> None:
    """Begin anew without the marks of the run that this is typed in.

    What goes on by itself is no part of it: the run around us would be held until ours ends, and a stop would end both.
    """
    if any(name in os.environ for name in OWN_VARIABLES):
        with contextlib.suppress(OSError, ValueError):  # the run's lock, which a trainer of it would adopt
            os.set_inheritable(int(os.environ.get(LOCK_VARIABLE, "")), False)
        environment = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - no shell on purpose


def _turn(plan: LaunchPlan, directory: Path, settings: Settings, *, wait: bool) -> Queued | None:
    """How it comes to its turn. Where it does not queue it is asked right here whether it may start at all."""
    from solorun.preflight import require_safe_start

    def require_safe(tell: Callable[[str], None]) -> None:
        require_safe_start(
            directory, plan.argv, settings,
            share_accelerator=False, tell=tell, cwd=plan.cwd, environment=plan.env,
        )  # fmt: skip

    if wait:
        return Queued(lambda: require_safe(lambda _line: None))
    require_safe(lambda line: _say(f"warning: {line}"))
    return None


def _in_pane(plan: LaunchPlan, directory: Path, settings: Settings, arguments: argparse.Namespace) -> int:
    from solorun.tmux import enter_pane

    environment, reports, session = enter_pane(arguments.pane, os.environ)
    tell = teller(reports)

    def told(report: Report) -> None:
        tell(report)
        _tell_waiting(report)

    plan = replace(plan, env=environment)
    audience = Audience(sys.stdout.fileno(), told, session)
    try:
        turn = _turn(plan, directory, settings, wait=True) if arguments.wait else None
        ended = in_foreground(plan, directory, settings, turn, audience)
    except BaseException as error:
        tell(failure(error))
        raise
    _say(ended_line(ended))
    return ended.exit_code


def _tell_waiting(report: Report) -> None:
    if isinstance(report, Waiting):
        _say(f"{waiting_line(report)}; Ctrl-C calls it off")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that is gone must not cost the command's status
        print(f"solorun: {line}", file=sys.stderr, flush=True)


def _report(what: Started | Waiting, directory: Path, session: TmuxSession | None, as_json: bool) -> int:
    over = what.over if isinstance(what, Started) else None
    if as_json:
        print(json.dumps({"schema": 1, "directory": str(directory.absolute()), **_facts(what, session)}, indent=1))
    else:
        print("\n".join(_lines(what, typed(directory), session)))
    return over.exit_code if over else 0


def _facts(what: Started | Waiting, session: TmuxSession | None) -> dict[str, object]:
    name = session.name if session else None
    if isinstance(what, Waiting):
        return {
            "state": "waiting", "ahead": what.ahead, "supervisor": what.supervisor, "session": name, "pid": None,
            "run_id": None, "exit_code": None,
        }  # fmt: skip
    held, over = what.holding, what.over
    return {
        "state": over.state if over else "running", "ahead": 0, "supervisor": held.supervisor, "session": name,
        "pid": held.pid, "run_id": held.run_id, "exit_code": over.exit_code if over else None,
    }  # fmt: skip


def _lines(what: Started | Waiting, where: str, session: TmuxSession | None) -> list[str]:
    if isinstance(what, Waiting):
        return [
            f"{where}: {waiting_line(what)}",
            f"  see:   solorun status {where}",
            f"  off:   solorun stop {where} --waiting {what.supervisor}",
        ]
    held = what.holding
    if what.over is not None:
        said = "its last lines:" if what.over.lines else "it wrote nothing"
        return [
            f"{where}: {what.over.state} at once, exit status {what.over.exit_code}; {said}",
            *(f"  | {line}" for line in what.over.lines),
            f"  next: solorun history -n 1 {where}",
        ]
    live = [f"  live:  {_attach_line(session)}   (leave with Ctrl-b d)"] if session else []
    return [
        f"{where}: run {held.run_id} holds it, PID {held.pid}",
        "  it goes on when you log out",
        f"  watch: solorun attach {where}",
        *live,
        f"  stop:  solorun stop {where}",
    ]


def _attach_line(session: TmuxSession) -> str:
    ours = os.environ.get(SOCKET_VARIABLE)
    return f"tmux {f'-S {shlex.quote(ours)} ' if ours else ''}attach -t {session.name}"
