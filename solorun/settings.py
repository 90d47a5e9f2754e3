"""Settings: defaults, overruled by `solorun.toml`, overruled by the environment."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from solorun.errors import BadUsage

FILE = "solorun.toml"


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
    """

    roots: tuple[Path, ...] = (Path("results"), Path("kssm/results"))
    silent_floor_s: float = 90.0
    silent_factor: float = 6.0
    silent_ceiling_s: float = 900.0
    silent_unknown_s: float = 300.0
    settle_s: float = 0.1


def load(cwd: Path, environment: Mapping[str, str]) -> Settings:
    """The settings in force for a working directory.

    Args:
        cwd: `solorun.toml` is looked for here and in every directory above.
        environment: SOLORUN_ROOTS, paths separated as in PATH, overrules the file.

    Raises:
        BadUsage: the file is not valid, or has an unknown key.
    """
    place = next((d for d in (cwd, *cwd.parents) if (d / FILE).is_file()), None)
    settings = _from_file(place) if place else replace(Settings(), roots=tuple(cwd / root for root in Settings().roots))
    if roots := environment.get("SOLORUN_ROOTS"):
        settings = replace(settings, roots=tuple(Path(root) for root in roots.split(os.pathsep) if root))
    return settings


def _from_file(place: Path) -> Settings:
    import tomllib

    path = place / FILE
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadUsage(f"{path} cannot be read: {error}", "correct that file") from None
    roots = raw.pop("roots", [str(root) for root in Settings().roots])
    if not isinstance(roots, list) or not all(isinstance(root, str) for root in roots):
        raise BadUsage(f"{path}: roots must be a list of paths", 'write, for example, roots = ["results"]')
    numbers: dict[str, float] = {}
    for key, value in raw.items():
        if key not in Settings.__slots__:
            raise BadUsage(f"{path}: unknown key {key!r}", f"the keys are {', '.join(Settings.__slots__)}")
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise BadUsage(f"{path}: {key} must be a number of 0 or more", "correct that file")
        numbers[key] = float(value)
    return replace(Settings(), roots=tuple(place / root for root in roots), **numbers)
