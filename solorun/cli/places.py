"""Which directories a command line means."""

from __future__ import annotations

import os
import stat
import sys

from solorun import settingsfile
from solorun.process import here
from solorun.rundir import tidy
from solorun.settings import Settings, state_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def current_settings() -> Settings:
    """The settings in force here."""
    return settingsfile.load(os.getcwd(), os.environ, note)


def roots(named: Sequence[str], settings: Settings, tell: Callable[[str], None] = lambda _line: None) -> list[str]:
    """The named directories; or the configured roots that exist, and every directory that a run was started in.

    Args:
        named: what was typed.
        settings: in force.
        tell: told in one line when the registry of started runs cannot be read.
    """
    if named:
        return [tidy(name) for name in named]
    from solorun import registry

    started_in, problem = registry.started_in(state_directory(os.environ, sys.platform), here().machine)
    if problem:
        tell(problem)
    return without_repeats([*map(tidy, settings.roots), *started_in])


def without_repeats(paths: Iterable[str]) -> list[str]:
    """The directories that exist, none twice, also not through a link; the first name counts."""
    found: dict[tuple[int, int], str] = {}
    for path in paths:
        try:
            facts = os.stat(path)
        except OSError:
            continue
        if stat.S_ISDIR(facts.st_mode):
            found.setdefault((facts.st_dev, facts.st_ino), path)
    return list(found.values())


def relative(path: str | os.PathLike[str], here: str = "") -> str:
    """A path as the person would type it from here.

    Args:
        path: relative or not.
        here: the working directory, where the caller knows it: a table of a thousand rows asks a thousand times.
    """
    here = here or os.getcwd()
    absolute = os.path.join(here, path)
    inside = here if here.endswith("/") else f"{here}/"
    if absolute.startswith(inside):
        return absolute[len(inside) :] or "."
    return "." if absolute == here else absolute


def note(line: str) -> None:
    """Say something beside the answer; on standard error, so that a program that reads the answer is not disturbed."""
    print(f"solorun: {line}", file=sys.stderr)
