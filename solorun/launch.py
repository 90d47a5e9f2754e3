"""What is to be started, and how: a plan, made before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from solorun.errors import BadUsage, DirectoryProblem
from solorun.hold import LOCK_VARIABLE, SUPERVISOR_VARIABLE
from solorun.process import RUN_ID_VARIABLE


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """What to start and how.

    Args:
        argv: program and arguments, never a shell line.
        cwd: working directory.
        env: environment, without the guard's own variables.
        output: where a person watches: a descriptor to copy the log to, or None.
    """

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    output: int | None


def plan_command(argv: tuple[str, ...], cwd: Path, env: Mapping[str, str], output: int | None) -> LaunchPlan:
    """A plan for a command line.

    Raises:
        BadUsage: no command was given.
        DirectoryProblem: the working directory is gone.
    """
    if not argv:
        raise BadUsage("no command was given", "write it after `--`: solorun start DIR -- python3 train.py")
    if not cwd.is_dir():
        raise DirectoryProblem(f"the working directory {str(cwd)!r} is gone", "change to a directory that exists")
    own = (RUN_ID_VARIABLE, LOCK_VARIABLE, SUPERVISOR_VARIABLE)
    return LaunchPlan(argv, cwd, {key: value for key, value in env.items() if key not in own}, output)
