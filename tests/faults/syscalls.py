"""The attack on every system call: a kill, an error or a short write at each file operation of each sequence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from subprocess import PIPE
from typing import Any

from tests.faults import shim
from tests.faults.tally import Tally

NAME = "every system call"
ROOMS = ("tests.faults.guard_scenes", "tests.faults.trainer_scenes")
ROOT = Path(__file__).parents[2]


def attack(seed: int, share: float = 1.0, rooms: tuple[str, ...] = ROOMS) -> Tally:
    """Strike the calls of all scenes.

    Args:
        seed: of the sample.
        share: of the cases; 1.0 for all.
        rooms: modules with `SCENES`; each is attacked in a process of its own, beside the others.
    """
    memory = "/dev/shm"  # a disk would only be waited for
    with tempfile.TemporaryDirectory(prefix="faults-", dir=memory if os.access(memory, os.W_OK) else None) as place:
        place = os.path.realpath(place)
        library = shim.build(Path(place))
        env = {key: value for key, value in os.environ.items() if not key.startswith("SOLORUN_")}
        env |= {"LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        words = (sys.executable, "-m", "tests.faults.engine", NAME)
        engines = [_begin((*words, room, str(seed), str(share), place), env) for room in rooms]
        said = [engine.communicate() for engine in engines]
        for engine, (_, error) in zip(engines, said, strict=True):
            if engine.returncode:
                raise RuntimeError(f"the engine ended with {engine.returncode}:\n{error}")
    return together([json.loads(output.splitlines()[-1]) for output, _ in said])


def _begin(words: tuple[str, ...], env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, env=env, cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True)


def together(found: list[dict[str, Any]]) -> Tally:
    """The tally of several engines."""
    facts: Counter[str] = sum((Counter(one["facts"]) for one in found), Counter())
    failures = dict.fromkeys(failure for one in found for failure in one["failures"])
    return Tally(NAME, sum(one["cases"] for one in found), tuple(failures), dict(sorted(facts.items())))
