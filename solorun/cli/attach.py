"""`solorun attach DIR`: live output of any run; Ctrl-C asks whether to leave it or to stop it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from solorun.attach import LiveRun, end_of, find, watch
from solorun.cli.places import current_settings
from solorun.cli.render import typed
from solorun.cli.screen import unscreened
from solorun.errors import BadUsage, SolorunError, directory_problem, explain
from solorun.logs import for_terminal
from solorun.runstate import how_ended
from solorun.status import wall_clock
from solorun.stop import StillRunning, StopPolicy, stop
from solorun.tmux import enter_command, has_session
from solorun.wording import ago, command_line

_QUESTION = "\nsolorun: d = leave it running, s = stop it, else go on; then Enter: "
_ANSWERS = {"d": "d", "detach": "d", "leave": "d", "s": "s", "stop": "s"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument(
        "-n", "--lines", type=int, default=10, metavar="N", help="last lines to show first (default 10)"
    )
    parser.add_argument(
        "--on-interrupt", choices=("ask", "detach", "stop"), default="ask", help="what Ctrl-C does (default ask)"
    )
    parser.add_argument(
        "--tmux", action="store_true", help="enter its tmux session; Ctrl-C there goes to the run itself"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the run until it ends (then its exit status) or the watcher leaves it (then 0)."""
    if arguments.lines < 0:
        raise BadUsage("-n counts lines, 0 or more", "write, for example, -n 20")
    live = find(Path(arguments.directory), wall_clock())
    if arguments.tmux:
        _enter_session(live)
    where = typed(live.directory)
    for line in _heading(live, arguments.on_interrupt):
        _say(line)
    settings = current_settings()
    patience = StopPolicy(settings.grace_s, save_extension_s=settings.save_extension_s)
    watcher = _Watch(live, arguments.on_interrupt, patience)
    try:
        left = watcher.go_on(watch(live, arguments.lines))
    except BrokenPipeError:  # whoever read (`solorun attach DIR | head`) has left
        raise
    except OSError as error:
        raise directory_problem(error, "read the log of", live.directory) from None
    if left:
        goes_on = "it was asked to stop, and may go on for a while" if watcher.asked_to_stop else "it goes on"
        _say(f"left; {goes_on}\n  again: solorun attach {where}\n  stop:  solorun stop {where}")
        return 0
    return _tell_end(live)


def _heading(live: LiveRun, on_interrupt: str) -> tuple[str, ...]:
    run = f"run {live.run_id}" if live.run_id else "an old-style trainer"
    ctrl_c = {"ask": "asks whether to leave it or to stop it", "detach": "leaves it", "stop": "stops it"}
    return (
        f"{run}, PID {live.pid} of {live.owner.user}, for {ago(wall_clock() - live.owner.since)}",
        f"command: {command_line(live.owner.argv)}",
        f"Ctrl-C {ctrl_c[on_interrupt]}",
    )


def _enter_session(live: LiveRun) -> None:
    session = live.session
    if session is None or not has_session(session):
        raise SolorunError("that run does not live in a tmux session of yours", "watch it without --tmux")
    command = enter_command(session, os.environ)
    os.execvp(command[0], command)  # noqa: S606 - no shell on purpose


class _Watch:
    """Prints in a thread of its own, so that a Ctrl-C interrupts no line and loses none."""

    def __init__(self, live: LiveRun, on_interrupt: str, patience: StopPolicy) -> None:
        self._live = live
        self._on_interrupt = on_interrupt
        self._patience = patience
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._problem: OSError | None = None
        self._stopping: threading.Thread | None = None

    @property
    def asked_to_stop(self) -> bool:
        """Whether a stop was begun from here."""
        return self._stopping is not None

    def go_on(self, texts: Iterator[str]) -> bool:
        """Print what comes. True when the watcher left, False when the run ended.

        Raises:
            OSError: the log cannot be read, or the terminal is gone.
        """
        interrupted = False
        try:
            threading.Thread(target=self._print, args=(texts,), daemon=True).start()
        except KeyboardInterrupt:  # the first lines are shown before this call comes back
            interrupted = True
        while not self._over.is_set():
            try:  # all of it: a Ctrl-C between an answer and the next wait is one more question, and ends nothing
                if interrupted and self._wants_to_leave():
                    return True
                interrupted = False
                self._over.wait(0.2)  # and no join(): one that is interrupted takes the thread for ended
            except KeyboardInterrupt:
                interrupted = True
        if self._problem is not None:
            raise self._problem
        return False

    def _print(self, texts: Iterator[str]) -> None:
        clean: Callable[[str], str] = for_terminal if sys.stdout.isatty() else str
        out = unscreened(sys.stdout)
        try:
            for text in texts:
                with self._turn:
                    out.write(clean(text))
                    out.flush()
        except OSError as error:
            self._problem = error
        finally:
            self._over.set()

    def _wants_to_leave(self) -> bool:
        choice = {"detach": "d", "stop": "s"}.get(self._on_interrupt) or self._ask()
        if choice == "s" and (self._stopping is None or not self._stopping.is_alive()):
            self._stopping = threading.Thread(target=self._stop, daemon=True)
            self._stopping.start()
            return False
        return choice == "d"

    def _ask(self) -> str:
        if not sys.stdin.isatty():
            return "d"
        try:
            with self._turn:
                sys.stderr.write(_QUESTION)
                sys.stderr.flush()
                answer = sys.stdin.readline()
        except KeyboardInterrupt:  # twice: leave at once, and never by stopping
            sys.stderr.write("\n")
            return "d"
        # The whole word: "show me" is no "s", and what was typed for the shell is no answer.
        return _ANSWERS.get(answer.strip().lower(), "") if answer else "d"

    def _stop(self) -> None:
        try:
            result = stop(self._live.directory, self._patience, tell=_say)
        except SolorunError as error:
            _say(explain(error))
            return
        if isinstance(result, StillRunning):
            where = typed(self._live.directory)
            _say(f"still running after {ago(result.after_s)}, phase {result.phase}; it was asked, and may still end")
            _say(f"to end it hard: solorun stop --kill {where}")


def _tell_end(live: LiveRun) -> int:
    record = end_of(live)
    if record is None:
        _say("the run is over")
        return 0
    lasted = f" after {ago(record.ended - record.started)}" if record.ended else ""
    step = "" if record.last_step is None else f" at step {record.last_step}"
    _say(f"{how_ended(record)}{step}{lasted}" + (f", exit status {record.exit_code}" if record.exit_code else ""))
    return record.exit_code or 0


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(f"solorun: {line}", file=sys.stderr, flush=True)
