"""What a person may set, and its defaults; `settingsfile` reads what was set."""

from __future__ import annotations

import os

from solorun.frozen import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunEntry:
    """What `solorun start DIR` runs when no command is typed: `[runs."DIR"]`.

    Args:
        directory: absolute path of the results directory.
        command: program and arguments.
        cwd: where it runs; the directory of the settings file unless told otherwise.
        environment: variables on top of the caller's.
    """

    directory: Path
    command: tuple[str, ...]
    cwd: Path
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HostEntry:
    """A machine that is reached over ssh: `[hosts.NAME]`.

    Args:
        name: what a person types after `--host`.
        ssh: destination as typed after `ssh`, so that the user's own ssh configuration counts.
        directory: the project's directory there; `~` is the remote home; empty for the login directory.
        command: how `solorun` is called there, program and leading arguments.
    """

    name: str
    ssh: str
    directory: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NotifyEntry:
    """Whom to tell: `[[notify]]`. Exactly one of command, webhook and apprise is set.

    Args:
        on: the occasions: end, crash, hang, memory, disk.
        command: program and arguments; gets the facts as JSON on its standard input and in SOLORUN_* variables.
        webhook: URL that gets the facts as JSON by POST.
        apprise: any URL that the package `apprise` understands.
    """

    on: frozenset[str]
    command: tuple[str, ...]
    webhook: str
    apprise: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person may set.

    Args:
        roots: where results directories are looked for, relative to the directory of the settings file.
        silent_floor_s: a run is never called silent before this, however quick its steps are.
        silent_factor: times the slowest recent step of the phase, after which a run is silent.
        silent_ceiling_s: a run is always called silent after this.
        silent_unknown_s: the limit for a run that reports no steps (its log counts then).
        settle_s: how long a start watches for an old-style trainer that races with it.
        grace_s: how long `stop` waits for a run's own end.
        save_extension_s: how much longer it waits for a save in progress.
        watch_every_s: how often a supervisor looks at its run for a hang, low memory and low disk.
        memory_low: available memory below this share of the total is low.
        disk_low_checkpoints: room for fewer next checkpoints than this is low.
        share_accelerator: whether two runs may use one accelerator.
        host_deadline_s: how long a host may take to answer.
        runs: commands by results directory.
        hosts: machines that are reached over ssh.
        notify: whom to tell when a run ends, crashes, hangs, or lacks memory or disk.
    """

    roots: tuple[str, ...] = ("results", "kssm/results")
    silent_floor_s: float = 90.0
    silent_factor: float = 6.0
    silent_ceiling_s: float = 900.0
    silent_unknown_s: float = 300.0
    settle_s: float = 0.1
    grace_s: float = 60.0
    save_extension_s: float = 600.0
    watch_every_s: float = 5.0
    memory_low: float = 0.05
    disk_low_checkpoints: float = 2.0
    share_accelerator: bool = False
    host_deadline_s: float = 10.0
    runs: tuple[RunEntry, ...] = ()
    hosts: tuple[HostEntry, ...] = ()
    notify: tuple[NotifyEntry, ...] = ()

    def run_entry(self, directory: Path) -> RunEntry | None:
        """The entry of a results directory, None when it has none."""
        wanted = os.path.realpath(directory)
        return next((entry for entry in self.runs if os.path.realpath(entry.directory) == wanted), None)


def state_directory(environment: Mapping[str, str], platform: str) -> str:
    """Where the guard keeps what belongs to a user: the registry of runs, what was last seen of hosts.

    Args:
        environment: SOLORUN_STATE names another place; XDG_STATE_HOME and HOME as usual.
        platform: `sys.platform`.
    """
    if chosen := environment.get("SOLORUN_STATE"):
        return chosen
    home = os.path.expanduser(environment.get("HOME") or "~")
    if platform == "darwin":
        return os.path.join(home, "Library", "Application Support", "solorun")
    return os.path.join(environment.get("XDG_STATE_HOME") or os.path.join(home, ".local", "state"), "solorun")
