"""Which directories a command line means."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from solorun import settingsfile
from solorun.process import here
from solorun.settings import Settings, state_directory


def current_settings() -> Settings:
    """The settings in force here."""
    return settingsfile.load(Path.cwd(), os.environ)


def roots(named: list[str], settings: Settings, tell: Callable[[str], None] = lambda _line: None) -> list[Path]:
    """The named directories; or the configured roots that exist, and every directory that a run was started in.

    Args:
        named: what was typed.
        settings: in force.
        tell: told in one line when the registry of started runs cannot be read.
    """
    if named:
        return [Path(name) for name in named]
    from solorun import registry

    known = registry.read(state_directory(os.environ, sys.platform))
    if known.problem:
        tell(known.problem)
    started_in = registry.of_machine(known, here().machine) if known.entries else []
    return without_repeats([*settings.roots, *started_in])


def without_repeats(paths: Iterable[Path]) -> list[Path]:
    """The directories that exist, none twice, also not through a link; the first name counts."""
    found: dict[tuple[int, int], Path] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            facts = os.stat(path)
            if stat.S_ISDIR(facts.st_mode):
                found.setdefault((facts.st_dev, facts.st_ino), path)
    return list(found.values())


def relative(path: str | Path) -> str:
    """A path as the person would type it from here."""
    here = os.getcwd()
    absolute = os.path.join(here, path)  # as text: a table of a thousand rows asks a thousand times
    if absolute.startswith(here.rstrip("/") + "/"):
        return absolute[len(here.rstrip("/")) + 1 :] or "."
    return "." if absolute == here else absolute


def note(line: str) -> None:
    """Say something beside the answer; on standard error, so that a program that reads the answer is not disturbed."""
    print(f"solorun: {line}", file=sys.stderr)
