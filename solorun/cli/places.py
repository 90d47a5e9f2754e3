"""Which directories a command line means."""

from __future__ import annotations

import os
from pathlib import Path

from solorun import settingsfile
from solorun.settings import Settings


def current_settings() -> Settings:
    """The settings in force here."""
    return settingsfile.load(Path.cwd(), os.environ)


def roots(named: list[str], settings: Settings) -> list[Path]:
    """The named directories, or the configured roots that exist."""
    return [Path(name) for name in named] or [root for root in settings.roots if root.is_dir()]


def relative(path: str | Path) -> str:
    """A path as the person would type it from here."""
    absolute = Path(path).absolute()
    try:
        return str(absolute.relative_to(Path.cwd()))
    except ValueError:
        return str(absolute)
