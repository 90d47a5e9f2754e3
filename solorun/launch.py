"""What is to be started, and how: a plan, made before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from solorun.errors import BadUsage, DirectoryProblem
from solorun.frozen import dataclass
from solorun.hold import LOCK_VARIABLE, SUPERVISOR_VARIABLE
from solorun.process import RUN_ID_VARIABLE
from solorun.settings import RunEntry

SOCKET_VARIABLE = "SOLORUN_TMUX_SOCKET"
"""Path of another tmux server's socket than the user's own."""

Mode = Literal["foreground", "background", "tmux"]
OWN_VARIABLES = (RUN_ID_VARIABLE, LOCK_VARIABLE, SUPERVISOR_VARIABLE)
"""What marks a process as part of a run: whatever outlives the run must not carry it."""


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """What to start and how.

    Args:
        argv: program and arguments, never a shell line.
        cwd: working directory.
        env: environment, without the guard's own variables.
        mode: where the supervisor lives: in this terminal, in a session of its own, or in a tmux pane.
    """

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    mode: Mode


@dataclass(frozen=True, slots=True)
class TmuxSession:
    """Where a person finds a run that lives in tmux.

    Args:
        name: of the session.
        socket: path of the server's socket.
    """

    name: str
    socket: str


def plan_command(
    argv: tuple[str, ...], cwd: Path, env: Mapping[str, str], mode: Mode, entry: RunEntry | None = None
) -> LaunchPlan:
    """A plan for a command line, or for the settings' entry of the directory where no command was typed.

    Args:
        argv: what was typed after `--`.
        cwd: where it was typed.
        env: the caller's environment.
        mode: where the supervisor shall live.
        entry: of the directory in `solorun.toml`.

    Raises:
        BadUsage: no command was typed, and there is no entry.
        DirectoryProblem: the working directory is gone.
    """
    if not argv:
        if entry is None:
            raise BadUsage(
                "no command was given, and solorun.toml has none for this directory",
                "write it after `--`: solorun start DIR -- python3 train.py",
            )
        argv, cwd, env = entry.command, entry.cwd, {**env, **entry.environment}
    if not cwd.is_dir():
        raise DirectoryProblem(f"the working directory {str(cwd)!r} is gone", "change to a directory that exists")
    return LaunchPlan(argv, cwd, {key: value for key, value in env.items() if key not in OWN_VARIABLES}, mode)
