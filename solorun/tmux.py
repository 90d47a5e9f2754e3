"""A run in a tmux session: live when attached, alive when detached, reachable from any login of the same user.

The lock is taken inside the pane. A launcher that took it would hand its descriptor to the tmux server, which outlives
the run. What the pane needs and says goes through a private folder: the caller's environment (a running server has
another one, and arguments can be read by everybody), and a FIFO for the reports.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solorun.errors import BadUsage, DirectoryProblem
from solorun.handshake import Listener, Waiting
from solorun.launch import OWN_VARIABLES, SOCKET_VARIABLE, LaunchPlan, TmuxSession
from solorun.start import Started, await_start

_ENVIRONMENT = "environment.json"
_REPORTS = "reports"
_OF_THE_PANE = ("TMUX", "TMUX_PANE", "TERM", "TERM_PROGRAM", "TERM_PROGRAM_VERSION", "COLORTERM")
_TIMEOUT_S = 10.0
_NO_ANSWER = 124
_NAMES = 9
_SIZE = ("-x", "160", "-y", "48")


def session_name(directory: Path) -> str:
    """The name of the session of a results directory: readable, and another one for each directory.

    tmux gives `.` and `:` a meaning in targets, so they cannot be in a name.
    """
    path = os.path.realpath(directory)
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", os.path.basename(path)).strip("-")[:32]
    return f"solorun-{readable or 'run'}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:6]}"


def start_in_session(
    plan: LaunchPlan, directory: Path, *, wait: bool, flags: tuple[str, ...] = ()
) -> tuple[TmuxSession, Started | Waiting]:
    """Start in a new tmux session, and return when it is known what became of it.

    Args:
        plan: what to start.
        directory: the results directory.
        wait: queue behind the run that is there.
        flags: further flags of `solorun start`.

    Raises:
        BadUsage: there is no tmux.
        SolorunError: the start failed inside the session, with the reason from there.
    """
    if shutil.which("tmux") is None:
        raise BadUsage("tmux is not installed", "apt-get install tmux, brew install tmux, or start with --background")
    place = Path(tempfile.mkdtemp(prefix="solorun-tmux-"))
    try:
        (place / _ENVIRONMENT).write_text(json.dumps(dict(plan.env)))
        os.mkfifo(place / _REPORTS, 0o600)
        # For reading and writing: so it is never at its end before the pane has opened it.
        listener = Listener(os.open(place / _REPORTS, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            session = _new_session(plan, directory, place, flags, wait)
            return session, await_start(listener, lambda: has_session(session))
        finally:
            listener.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _new_session(plan: LaunchPlan, directory: Path, place: Path, flags: tuple[str, ...], wait: bool) -> TmuxSession:
    # This very Python with this very package, whatever the server's environment says.
    paths = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
    inside = [sys.executable, "-m", "solorun", "start", str(directory.absolute()), "--pane", str(place), *flags]
    inside += ["--wait"] if wait else []
    command = ["env", paths, *inside, "--", *plan.argv]
    name = session_name(directory)
    for attempt in range(1, _NAMES + 1):
        # A session of that name may be a live run's, whose directory refuses us in the pane, or a person's own.
        chosen = name if attempt == 1 else f"{name}-{attempt}"
        made = _tmux(
            "new-session", "-d", "-P", "-F", "#{socket_path}", "-s", chosen, *_SIZE, "-c", str(plan.cwd), *command
        )
        if made.returncode == 0:
            return TmuxSession(chosen, made.stdout.strip())
        if "duplicate session" not in made.stderr:
            break
    raise DirectoryProblem(f"tmux could not make a session: {made.stderr.strip()}", "start with --background")


def enter_pane(place: Path, environment: Mapping[str, str]) -> tuple[dict[str, str], int, TmuxSession]:
    """What a start inside a pane was given: the environment for its command, where to report to, and its session.

    Args:
        place: the private folder.
        environment: of the pane, which knows its tmux and its terminal.

    Raises:
        BadUsage: this is no pane of a start.
    """
    try:
        given: dict[str, Any] = json.loads((place / _ENVIRONMENT).read_text())
        reports = os.open(place / _REPORTS, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # not to wait for a reader
        os.set_blocking(reports, True)  # last lines may be longer than a pipe holds: cut short, they are no report
    except (OSError, ValueError):
        raise BadUsage("--pane is for the inside of tmux", "use --tmux") from None
    own = {name: environment[name] for name in _OF_THE_PANE if name in environment}
    socket = environment.get("TMUX", "").split(",")[0]
    name = _tmux("display-message", "-p", "-t", environment.get("TMUX_PANE", ""), "#{session_name}").stdout.strip()
    return {**given, **own}, reports, TmuxSession(name, socket)


def has_session(session: TmuxSession) -> bool:
    """Whether a session lives; a server that does not answer for the moment has not ended it."""
    return _tmux("has-session", "-t", f"={session.name}", socket=session.socket).returncode in (0, _NO_ANSWER)


def enter_command(session: TmuxSession, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The command that shows a session in this terminal; from within tmux, by switching to it."""
    verb = "switch-client" if environment.get("TMUX", "").split(",")[0] == session.socket else "attach-session"
    return ("tmux", "-S", session.socket, verb, "-t", f"={session.name}")


def _tmux(*words: str, socket: str = "") -> subprocess.CompletedProcess[str]:
    socket = socket or os.environ.get(SOCKET_VARIABLE, "")
    command = ["tmux", *(("-S", socket) if socket else ()), *words]
    # A server that is started here outlives every run, and other sessions live in it: it belongs to none of them.
    environment = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S,
            check=False, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, _NO_ANSWER, "", f"it did not answer within {_TIMEOUT_S:g} s")
