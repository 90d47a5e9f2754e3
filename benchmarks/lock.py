"""Acquire + release, and refuse: ours beside filelock, portalocker, fasteners and the old PID file, interleaved.

    python3 -m benchmarks.lock

All in one directory of one file system, one call of each in turn, so that the machine's noise falls on all alike.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fasteners
import filelock
import portalocker

from benchmarks.measure import Row, tell
from solorun import lock, process
from solorun.owner import Owner
from tests.processes.old_trainer import OldLock

ROUNDS = 1_000
AIM = 1.0
"""No more than the lock that most programs use."""

Calls = dict[str, Callable[[], object]]


def _ours(directory: Path) -> Callable[[], None]:
    path, me = str(directory), process.identify_self()
    inode = directory.stat().st_ino

    def call() -> None:
        held = lock.enter(path, settle_s=0)
        assert isinstance(held, lock.DirectoryLock)
        assert held.publish(Owner("bench", me, None, True, "me", ("python3",), path, time.time(), path, inode)) is None
        held.release()

    return call


def _portalocker(path: str) -> None:
    held = portalocker.Lock(path, timeout=0)
    held.acquire()
    held.release()


def _once(held: filelock.FileLock | fasteners.InterProcessLock) -> None:
    held.acquire()
    held.release()


def _old(held: OldLock) -> None:
    held.acquire()
    held.release()


def acquiring(directory: Path) -> Calls:
    """One acquire + release of each."""
    flock = filelock.FileLock(directory / "filelock")
    fasten = fasteners.InterProcessLock(directory / "fasteners")
    (directory / "old").mkdir()
    old = OldLock(str(directory / "old"))
    return {
        "solorun": _ours(directory),
        "portalocker": lambda: _portalocker(str(directory / "portalocker")),
        "filelock": lambda: _once(flock),
        "fasteners": lambda: _once(fasten),
        "old PID file": lambda: _old(old),
    }


def refusing(directory: Path) -> Calls:
    """One refused attempt of each, while another open description holds it."""
    holder = lock.enter(directory, settle_s=0)
    assert isinstance(holder, lock.DirectoryLock)
    kept: list[object] = [holder]
    kept.append(portalocker.Lock(str(directory / "portalocker"), timeout=0).acquire())
    first = filelock.FileLock(directory / "filelock")
    kept.append(first.acquire())
    second = filelock.FileLock(directory / "filelock")
    fasten = fasteners.InterProcessLock(directory / "fasteners")
    fasten.acquire()
    other = fasteners.InterProcessLock(directory / "fasteners")
    _KEPT.extend([*kept, first, fasten])
    path = str(directory)

    def refused(call: Callable[[], object], error: type[Exception]) -> None:
        try:
            call()
        except error:
            return
        raise AssertionError("was not refused")

    return {
        "solorun": lambda: lock.enter(path, settle_s=0),
        "portalocker": lambda: refused(
            lambda: portalocker.Lock(str(directory / "portalocker"), timeout=0, fail_when_locked=True).acquire(),
            portalocker.exceptions.LockException,
        ),
        "filelock": lambda: refused(lambda: second.acquire(timeout=0), filelock.Timeout),
        "fasteners": lambda: other.acquire(blocking=False),
    }


_KEPT: list[object] = []


def measure(title: str, calls: Calls) -> Row:
    """Interleave the calls, print median and 99th percentile of each, and set ours against filelock's."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    print(title)
    medians = {name: sorted(found)[len(found) // 2] * 1e6 for name, found in times.items()}
    for name, found in times.items():
        high = sorted(found)[int(len(found) * 0.99)] * 1e6
        ratio = medians["solorun"] / medians[name]
        print(f"  {name:14} p50 {medians[name]:7.1f} us   p99 {high:7.1f} us   ours / it {ratio:5.2f}")
    ours, ratio = medians["solorun"], medians["solorun"] / medians["filelock"]
    return Row(
        f"lock: {title}", f"filelock {medians['filelock']:.0f} us", f"p50 {ours:.0f} us", f"{ratio:.2f}x",
        f"<= {AIM:g}x", ratio <= AIM,
    )  # fmt: skip


def main() -> None:
    """Both tables, and a line of each."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as place:
        taken = measure("acquire + release", acquiring(Path(place)))
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as place:
        refused = measure("refuse", refusing(Path(place)))
    tell([taken, refused])


if __name__ == "__main__":
    main()
