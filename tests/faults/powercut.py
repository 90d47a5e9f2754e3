"""Power cuts under real runs: a mounted file system that loses what was not synced, cut within any of its calls."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import solorun
from tests.faults.power import Bench, Promises, judge_run, looking, restarted, train
from tests.faults.tally import Tally

ROOT = Path(__file__).resolve().parents[2]
_CALLS = 240
"""About as many changes as a run of four saves makes; a cut that would come later finds a run that ended."""


def can_mount() -> str:
    """Why nothing can be mounted here; empty when it can."""
    if importlib.util.find_spec("mfusepy") is None or shutil.which("fusermount3") is None:
        return "needs mfusepy and fuse3"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {os.strerror(error.errno or 0)}"
    return ""


@contextlib.contextmanager
def mounted() -> Iterator[Path]:
    """A weak disk.

    Raises:
        RuntimeError: it cannot be mounted.
    """
    with tempfile.TemporaryDirectory(prefix="weakdisk-") as place:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.weakdisk", place], cwd=ROOT, stderr=subprocess.PIPE
        )
        try:
            deadline = time.monotonic() + 60
            while not os.path.ismount(place):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no weak disk: {server.communicate()[1]!r}")
                time.sleep(0.01)
            yield Path(place)
        finally:
            subprocess.run(["fusermount3", "-u", "-z", place], check=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)
            server.kill()
            server.communicate()


def _power(disk: Path, words: str) -> None:
    (disk / ".power").write_text(words)


def _run(directory: Path, told: Path) -> int:
    """Train in a child that has no power from some call on, and dies with it; its exit code."""
    child = os.fork()
    if child == 0:
        code = 70
        with contextlib.suppress(BaseException):
            restarted()
            _tell_outside(told)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            train(directory)
            code = 0
        os.kill(os.getpid(), signal.SIGKILL) if code else os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _tell_outside(told: Path) -> None:
    """Have what is told as saved written down on a disk that keeps its power."""
    real = solorun.Run.event

    def event(run: solorun.Run, name: str, **facts: Any) -> None:
        real(run, name, **facts)
        if name == "saved":
            with told.open("a") as file:
                file.write(json.dumps(facts) + "\n")

    solorun.Run.event = event  # type: ignore[method-assign]


def _cut(bench: Bench, disk: Path, call: int) -> None:
    bench.disks += 1
    directory, told = disk / f"results-{bench.disks}", bench.place / f"told-{bench.disks}"
    directory.mkdir()
    descriptor = os.open(disk, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    _power(disk, f"off {call}")
    ended = _run(directory, told)
    _power(disk, "on")
    bench.cuts += ended != 0
    saved = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    digests = {int(facts["step"]): str(facts["digest"]) for facts in saved}
    promises = Promises(max(digests, default=0), digests, frozenset(), frozenset(), bench.live)
    try:
        wrong = judge_run(directory, promises, files=False)
    except Exception as error:
        wrong = [f"{type(error).__name__}: {error}"]
    bench.failures += [f"cut within change {call}: {line}" for line in wrong]


def attack(seed: int, share: float = 1.0) -> Tally:
    """Cut the power within each change that a run makes.

    Args:
        seed: of the choice among the changes.
        share: of all changes.
    """
    if reason := can_mount():
        return Tally("powercut", 0, facts={f"cuts made ({reason})": 0})
    calls = range(1, _CALLS + 1)
    chosen = sorted(random.Random(seed).sample(calls, max(1, int(_CALLS * share))))
    with looking() as bench, mounted() as disk:
        for call in chosen:
            _cut(bench, disk, call)
        return Tally("powercut", len(chosen), tuple(bench.failures), {"cuts within a run": bench.cuts})


def without_fsync() -> list[str]:
    """What the attack finds where nothing is made durable: that it sees a failure."""
    real = os.fsync
    with looking() as bench, mounted() as disk:
        os.fsync = lambda _descriptor: None
        try:
            _cut(bench, disk, _CALLS - 40)
        finally:
            os.fsync = real
        return bench.failures
